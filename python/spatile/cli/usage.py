"""What the commands' arguments have in common."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["PRECOMPUTE", "UsageError", "add_command", "model_folder"]

#: How ``--precompute`` is spelled.
PRECOMPUTE: dict[str, str | bool] = {"on": True, "off": False, "auto": "auto"}


class UsageError(Exception):
    """A command was used wrongly: exit code 2."""


def add_command(commands: Any, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    """A subcommand whose help ends with examples."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples.splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def model_folder(path: str) -> Path:
    """The folder to load for ``path``: a run's packed model, or the folder itself.

    Raises FileNotFoundError for a run that has no packed model yet, and for no folder at all.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{path}: no such folder, expected a model or a run")
    if not (folder / "run.json").is_file():
        return folder
    if not (folder / "packed" / "spatile.json").is_file():
        raise FileNotFoundError(
            f"{path}: a run without a packed model yet; "
            f"spatile finetune --resume --out {path} continues it"
        )
    return folder / "packed"
