"""``spatile export``: a packed model as a dense checkpoint that transformers reads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from spatile.cli.usage import add_command, model_folder

__all__ = ["add", "run"]

_EXAMPLES = """\
spatile export run ./for-transformers
spatile export run/packed ./for-transformers"""


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command."""
    parser = add_command(
        commands, "export", "write a packed model as a Hugging Face checkpoint, zeros where pruned",
        _EXAMPLES,
    )  # fmt: skip
    parser.add_argument("model", metavar="MODEL", help="a run or a packed model")
    parser.add_argument("out", metavar="OUT", help="the checkpoint's folder, new or empty")
    return parser


def run(given: argparse.Namespace) -> int:
    """Write the checkpoint."""
    from spatile.finetune.run_folder import RunFolder, write_folder
    from spatile.inference import Encoder

    RunFolder.check_new(given.out, op="export")
    encoder = Encoder.load(model_folder(given.model))
    write_folder(Path(given.out), lambda folder: encoder.export(folder))
    print(f"checkpoint: {given.out}")
    return 0
