"""A task's scores from logits, and whether a model's outputs are the task's classes. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatile.finetune.data.task import Task
from spatile.finetune.metrics import Score, evaluate

__all__ = ["check_labels", "predictions_of", "scores_of"]


def predictions_of(task: Task, logits: NDArray[np.float32]) -> NDArray[Any]:
    """Class indices (n,), or the numbers (n,) themselves in regression."""
    return logits[:, 0] if task.kind == "regression" else logits.argmax(axis=1)


def scores_of(task: Task, logits: NDArray[np.float32]) -> dict[str, Score]:
    """The task's metrics on dev."""
    predictions = predictions_of(task, logits)
    return evaluate(task.metrics, task.dev.labels, predictions, positive=task.positive)


def check_labels(config: Mapping[str, Any], task: Task) -> None:
    """Raise ValueError where a classifier's classes are not those of ``task``, in its order."""
    given = config.get("id2label") or {}
    names = tuple(str(given[key]) for key in sorted(given, key=int))
    generic = tuple(f"LABEL_{i}" for i in range(len(names)))
    if task.kind == "classification" and names not in (task.labels, generic):
        raise ValueError(
            f"{task.name}: the model's classes are {', '.join(names) or 'unknown'}, expected "
            f"{', '.join(task.labels)}"
        )
    if task.kind == "classification" and len(names) != task.outputs:
        raise ValueError(
            f"{task.name}: the model has {len(names)} outputs, expected {task.outputs}"
        )
