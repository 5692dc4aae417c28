"""``python -m spatile.benchmarks.gpu [NAME ...] --json FILE``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from spatile.benchmarks.gpu import NAMES

__all__ = ["main"]


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    made = argparse.ArgumentParser(prog="python -m spatile.benchmarks.gpu", description=__doc__)
    made.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default all"
    )
    made.add_argument("--json", type=Path, help="write the rows there")
    made.add_argument("--only", default="", help="the cases whose title holds it")
    made.add_argument("--seconds", type=float, default=0.1, help="for each side (default 0.1)")
    made.add_argument("--budget", type=float, default=300.0, help="seconds in all (default 300)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 1 where there is no GPU for torch and spatile, or nothing could be measured."""
    given = parser().parse_args(arguments)
    wrong = [name for name in given.names if name not in NAMES]
    if wrong:
        print(f"NAME is {wrong[0]}, expected one of {', '.join(NAMES)}", file=sys.stderr)
        return 2
    import torch

    import spatile as sp
    from spatile.benchmarks import console

    if not torch.cuda.is_available() or "cuda:0" not in sp.devices():
        print(f"no GPU: torch {torch.cuda.is_available()}, spatile {sp.info()['gpu']}")
        return 1
    from spatile.benchmarks.gpu.run import GpuBench

    bench = GpuBench(only=given.only, seconds=given.seconds, budget=given.budget, json=given.json)
    console.line(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for name in given.names or NAMES:
        console.line("")
        console.line(f"{name:70} {'ours ms':>9} {'peer ms':>9} {'ratio':>7}  peer")
        try:
            importlib.import_module(f"spatile.benchmarks.gpu.{name}").measure(bench)
        except (RuntimeError, ImportError, NotImplementedError, ValueError, TypeError) as error:
            bench.leave_out(f"{name}: {type(error).__name__}: {error}")  # the others still run
    console.line("")
    for text in console.summary(bench.rows):
        console.line(text)
    bench.save()
    return 0 if bench.rows else 1


if __name__ == "__main__":
    sys.exit(main())
