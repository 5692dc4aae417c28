"""``spatile info``: version, processor tier, threads, GPU; or what a model holds."""

from __future__ import annotations

import argparse
import json
from typing import Any

import spatile
from spatile.cli.usage import add_command, model_folder

__all__ = ["add", "run"]

_EXAMPLES = """\
spatile info
spatile info run/packed
spatile info --json"""


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command."""
    parser = add_command(
        commands, "info", "show what spatile runs on, or what a model holds", _EXAMPLES
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a run, model or checkpoint")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def run(given: argparse.Namespace) -> int:
    """Print it."""
    if given.model is not None:
        from spatile.inference import Encoder

        summary = Encoder.load(model_folder(given.model)).summary()
        print(json.dumps(summary.to_json(), indent=1) if given.json else summary)
        return 0
    found = spatile.info()
    if given.json:
        print(json.dumps(found, indent=1))
        return 0
    cpu, gpu = found["cpu"], found["gpu"]
    print(f"spatile {found['version']}")
    print(f"devices  {', '.join(found['devices'])}")
    print(f"cpu      tier {cpu['tier']} ({cpu['reason']}); can run {', '.join(cpu['tiers'])}")
    print(f"threads  {cpu['threads']}")
    if not gpu["available"]:
        print(f"gpu      {gpu['reason']}")
        return 0
    for one in gpu["devices"]:
        print(
            f"gpu      {one['device']} {one['name']}, compute capability "
            f"{one['compute_capability']}, {one['memory'] / 2**30:.1f} GiB, "
            f"{one['free_memory'] / 2**30:.1f} free"
        )
    print(f"cuda     driver {gpu['driver']}, runtime {gpu['runtime']}, {gpu['library']}")
    print(f"cublas   {gpu['cublas']}")
    return 0
