"""The command ``spatile``: finetune, prune, predict, bench, report, export, info."""

from __future__ import annotations

from spatile.cli.main import main

__all__ = ["main"]
