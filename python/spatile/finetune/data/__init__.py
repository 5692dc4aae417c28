"""Labelled text for fine-tuning: a folder of TSV or JSON lines, or a data set of the hub.

>>> from spatile.finetune.data import load_task
>>> task = load_task("data/qa")                                   # doctest: +SKIP
>>> task.labels, len(task.train), len(task.dev)                   # doctest: +SKIP
(('entailment', 'not_entailment'), 4000, 1000)

Needs NumPy alone; a hub name needs the package ``datasets``.
"""

from __future__ import annotations

from .load import load_task
from .task import Examples, Task

__all__ = ["Examples", "Task", "load_task"]
