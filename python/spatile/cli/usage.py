"""What the commands' arguments have in common."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spatile.sparsity import Schedule

__all__ = [
    "PRECOMPUTE",
    "UsageError",
    "add_command",
    "add_schedules",
    "model_folder",
    "refuse_beside_plan",
    "schedules_of",
]

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


def refuse_beside_plan(op: str, given: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise UsageError where one of ``names`` is ``given`` with a plan, which says the same."""
    for name in names:
        if given.get(name) is not None:
            flag = name.replace("_", "-")
            raise UsageError(f"{op}: --{flag} is given with --plan, expected one of the two")


def add_schedules(parser: argparse.ArgumentParser) -> None:
    """The options of a command that runs a model on part of its tokens and heads."""
    for unit in ("tokens", "heads"):
        parser.add_argument(
            f"--keep-{unit}",
            type=float,
            metavar="K",
            help=f"the fraction of the {unit} that is kept, averaged over the layers: the most "
            f"important ones for each input; 1 keeps all (default: what the model was saved with, "
            f"otherwise all)",
        )


def schedules_of(given: argparse.Namespace, op: str) -> tuple[Schedule | None, Schedule | None]:
    """What :func:`add_schedules` asked for, of tokens and of heads. Raises UsageError."""
    from spatile.sparsity import Schedule

    for unit in ("tokens", "heads"):
        keep = getattr(given, f"keep_{unit}")
        if keep is not None and not 0 < keep <= 1:
            raise UsageError(f"{op}: keep-{unit} is {keep:g}, expected a fraction in (0, 1]")
    tokens, heads = (
        None if keep is None else Schedule.linear(keep)
        for keep in (given.keep_tokens, given.keep_heads)
    )
    return tokens, heads
