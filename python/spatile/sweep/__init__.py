"""Sweeps: patterns × methods × sparsities × seeds, each trained from its seed's dense model.

What pruning costs in the task's metric, paired with the dense model of the same seed, and what it
gains in time. :func:`sweep` trains and measures; the rest reads what it wrote and needs neither
PyTorch nor, but for plots, matplotlib.
"""

from __future__ import annotations

from spatile.sweep.document import write_document
from spatile.sweep.rows import read_rows
from spatile.sweep.run import sweep
from spatile.sweep.spec import Cell, Spec
from spatile.sweep.summary import Summary, summarize

__all__ = ["Cell", "Spec", "Summary", "read_rows", "summarize", "sweep", "write_document"]
