"""``spatile bench``: ratios against the libraries that are installed beside spatile."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import spatile
from spatile.benchmarks import NAMES, PEERS
from spatile.cli.usage import UsageError, add_command

__all__ = ["add", "run"]

_EXAMPLES = """\
spatile bench all --json results.json
spatile bench linear attention --threads 1 2
spatile bench encoder --only "MiniLM-L6, 80%" --peers onnxruntime --seconds 0.5
spatile bench linear --tier avx2"""


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command."""
    parser = add_command(
        commands, "bench", "measure spatile against the other libraries installed", _EXAMPLES
    )
    names = (*NAMES, "all")
    parser.add_argument(
        "names", nargs="+", choices=names, metavar="NAME", help=f"one or more of {', '.join(names)}"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows there as a list")
    parser.add_argument(
        "--threads", type=_positive, nargs="+", metavar="N", help="default: all cores at hand"
    )
    parser.add_argument(
        "--seconds", type=_seconds, default=1.0, help="at least, for each side (default 1)"
    )
    parser.add_argument("--tier", metavar="T", help="another CPU tier for ours, not for peers")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="the cases whose title, as printed, holds it"
    )
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=PEERS, metavar="PEER",
        help=f"default: {' '.join(PEERS)}",
    )  # fmt: skip
    return parser


def run(given: argparse.Namespace) -> int:
    """Measure, print and write."""
    from spatile.benchmarks.runner import Options
    from spatile.benchmarks.runner import run as measure

    chosen = NAMES if "all" in given.names else tuple(dict.fromkeys(given.names))
    if given.json is not None and not given.json.absolute().parent.is_dir():
        raise UsageError(f"--json is {given.json}, expected a file in a folder that exists")
    tiers = spatile.info()["cpu"]["tiers"]
    if given.tier is not None and given.tier not in tiers:
        raise UsageError(
            f"--tier is {given.tier}, expected one that this processor runs: {', '.join(tiers)}"
        )
    options = Options(
        threads=tuple(given.threads or (spatile.num_threads(),)),
        seconds=given.seconds,
        tier=given.tier,
        only=given.only,
        peers=tuple(given.peers),
        json=given.json,
    )
    rows = measure(chosen, options)
    if given.json is not None:
        print(f"{len(rows)} rows: {given.json}")
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 256:
        raise argparse.ArgumentTypeError(f"{text}, expected 1 to 256")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}, expected a number of seconds, at least 0")
    return value
