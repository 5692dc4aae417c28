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
        write_html(report, Path(given.html), sections=_sections(report, Path(given.folder)))
    if given.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
    elif not given.html:
        print(render_text(report), end="")
    return 0


def _sections(report: dict[str, Any], path: Path) -> list[str]:
    """What shows the packed model beside the report; nothing where it is no longer there."""
    from spatile.inference import Encoder
    from spatile.report import model_sections, prunes

    packed = (path if path.is_dir() else path.parent) / "packed"
    if not packed.is_dir():
        return []
    try:
        encoder = Encoder.load(packed)
    except ModuleNotFoundError as error:
        return [
            f"<p class='note'>No pictures of the model: {error.name} is not installed "
            f"(pip install &quot;spatile[inference]&quot;)</p>"
        ]
    return model_sections(encoder, _task(report["settings"]) if prunes(encoder) else None)


def _task(settings: dict[str, Any]) -> Any:
    """The run's data, or why it can't be had any more."""
    from spatile.finetune.settings import Settings
    from spatile.finetune.tasks import load_data

    try:
        return load_data(Settings.from_dict(settings))
    except (OSError, ValueError, RuntimeError, ModuleNotFoundError) as error:
        return str(error)
