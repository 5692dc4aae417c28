"""Fine-tuning a classifier while it is pruned: data, stages, metrics and checkpoints.

``finetune``, ``prune``, ``Settings`` and ``RunFolder`` are loaded when first asked for, so that
reading data and scoring need NumPy alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spatile.finetune.pipeline import finetune
    from spatile.finetune.run_folder import RunFolder
    from spatile.finetune.settings import Settings

__all__ = ["RunFolder", "Settings", "finetune"]

_HOMES = {"RunFolder": "run_folder", "Settings": "settings", "finetune": "pipeline"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
