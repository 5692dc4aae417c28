"""Arguments to a command, and what goes wrong in it to one line and an exit code.

0: done. 1: failed. 2: used wrongly. 130: stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import spatile
from spatile.cli import bench, explain, export, finetune, info, predict, prune, report, sweep
from spatile.cli.usage import UsageError

__all__ = ["main"]

_COMMANDS = (finetune, prune, sweep, predict, explain, bench, report, export, info)

# Which extra brings a package that a command found missing.
_EXTRAS = {
    "torch": "train",
    "transformers": "train",
    "accelerate": "train",
    "tqdm": "train",
    "ml_dtypes": "train",
    "safetensors": "inference",
    "tokenizers": "inference",
    "matplotlib": "report",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. ``arguments`` defaults to the process's own."""
    given = _parser().parse_args(arguments)
    try:
        code: int = given.run(given)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as stop:
        _say(str(stop) or "stopped")
        return 130
    except BrokenPipeError:
        # The reader of a pipe has seen enough. What Python still holds must not be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if given.debug:
            raise
        _say(_one_line(error))
        return 2 if isinstance(error, UsageError) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spatile",
        description="Make a BERT-like classifier small and fast while it is fine-tuned, then run "
        "it without PyTorch.",
        epilog="spatile COMMAND --help has each command's options and examples.",
    )
    parser.add_argument("--version", action="version", version=f"spatile {spatile.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        added = command.add(commands)
        added.set_defaults(run=command.run)
        added.add_argument(
            "--debug", action="store_true", default=False, help="show the traceback of an error"
        )
    return parser


def _one_line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package in _EXTRAS:
            extra = f'pip install "spatile[{_EXTRAS[package]}]"'
            return f"needs {package}, which is not installed: {extra}"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if isinstance(error, MemoryError):
        return f"out of memory {text}".rstrip()
    return text or type(error).__name__


def _say(text: str) -> None:
    print(f"spatile: {text}", file=sys.stderr)
