"""``spatile explain``: which words and heads each layer of a model works on, without PyTorch."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from spatile.cli.usage import UsageError, add_command, add_schedules, model_folder, schedules_of

__all__ = ["add", "run"]

_EXAMPLES = """\
spatile explain run "it 's a charming and often affecting journey ."
spatile explain run/packed "When was it built?" "It was finished in 1889." --keep-tokens 0.5
spatile explain run "A witty film." --keep-tokens 0.5 --keep-heads 0.75 --html film.html
spatile explain run "A witty film." --keep-tokens 0.4 --json | jq .layers[-1].words"""

_LIKENESSES = {"·": ".", "…": "...", "␣": "_"}


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command."""
    parser = add_command(
        commands, "explain", "show which words and heads each layer works on", _EXAMPLES
    )
    parser.add_argument("model", metavar="MODEL", help="a run, a packed model or a checkpoint")
    parser.add_argument("text", metavar="TEXT", help="a sentence")
    parser.add_argument("pair", nargs="?", metavar="PAIR", help="the second text of a pair")
    add_schedules(parser)
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--html", metavar="FILE", help="write one HTML file instead")
    output.add_argument("--json", action="store_true", help="print it as JSON")
    return parser


def run(given: argparse.Namespace) -> int:
    """Print or write the picture."""
    from spatile.inference import Encoder
    from spatile.report import write_page

    tokens, heads = schedules_of(given, "explain")
    if given.html == "":
        raise UsageError("explain: html is '', expected a file")
    encoder = Encoder.load(model_folder(given.model), tokens=tokens, heads=heads)
    found = encoder.explain(given.text, given.pair)
    if given.html:
        title = given.text if given.pair is None else f"{given.text} / {given.pair}"
        write_page(Path(given.html), title, found.to_html())
    elif given.json:
        data = found.to_json()
        line = json.dumps(data, ensure_ascii=False)
        print(line if _fits(line) else json.dumps(data))
    else:
        print(_shown(str(found)))
    return 0


def _encoding() -> str:
    return getattr(sys.stdout, "encoding", None) or "utf-8"


def _fits(text: str) -> bool:
    try:
        text.encode(_encoding())
    except UnicodeEncodeError:
        return False
    return True


def _shown(text: str) -> str:
    """What standard output can show of ``text``; "?" for what its encoding lacks.

    The picture's own signs have likenesses that every encoding has.
    """
    if _fits(text):
        return text
    for sign, likeness in _LIKENESSES.items():
        text = text if _fits(sign) else text.replace(sign, likeness)
    return text.encode(_encoding(), "replace").decode(_encoding())
