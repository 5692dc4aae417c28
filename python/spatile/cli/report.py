"""``spatile report``: the report of a run again."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from spatile.cli.usage import add_command

__all__ = ["add", "run"]

_EXAMPLES = """\
spatile report run
spatile report run --html report.html
spatile report run --json | jq .scores.retrained"""


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command."""
    parser = add_command(commands, "report", "show the report of a run", _EXAMPLES)
    parser.add_argument("folder", metavar="RUN", help="the run's folder, or its report.json")
    parser.add_argument("--html", metavar="FILE", help="write it as one HTML file with plots")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    return parser


def run(given: argparse.Namespace) -> int:
    """Print or write the report."""
    from spatile.report import read_report, render_text, write_html

    report = read_report(given.folder)
    if given.html:
        write_html(report, Path(given.html))
    if given.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
    elif not given.html:
        print(render_text(report), end="")
    return 0
