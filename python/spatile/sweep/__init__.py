"""Sweeps: patterns × methods × sparsities × seeds, each trained from its seed's dense model.

What pruning costs in the task's metric, paired with the dense model of the same seed, and what it
gains in time. ``sweep`` trains and measures; the rest reads what it wrote and needs neither PyTorch
nor, but for plots, matplotlib. All are loaded when first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spatile.sweep.document import write_document
    from spatile.sweep.rows import read_rows
    from spatile.sweep.run import sweep
    from spatile.sweep.spec import Cell, Spec
    from spatile.sweep.summary import Summary, summarize

__all__ = ["Cell", "Spec", "Summary", "read_rows", "summarize", "sweep", "write_document"]

_HOMES = {
    "Cell": "spec",
    "Spec": "spec",
    "Summary": "summary",
    "read_rows": "rows",
    "summarize": "summary",
    "sweep": "run",
    "write_document": "document",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
