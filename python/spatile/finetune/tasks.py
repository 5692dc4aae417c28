"""The task that settings name, its scores from logits, whether a model's outputs are its classes.

Needs no PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatile.finetune.data import load_task
from spatile.finetune.data.task import Task
from spatile.finetune.metrics import Score, evaluate
from spatile.finetune.settings import Settings

__all__ = ["anchored", "check_labels", "load_data", "predictions_of", "scores_of"]


def anchored(name: str | os.PathLike[str]) -> str:
    """The absolute path of what is there, so that it is found from anywhere; else the name."""
    path = os.path.expanduser(os.fspath(name))
    return os.path.abspath(path) if os.path.exists(path) else os.fspath(name)


def load_data(settings: Settings) -> Task:
    """The task that a run's settings name."""
    return load_task(
        settings.data,
        dev_ids=settings.dev_ids,
        text=settings.text,
        pair=settings.pair,
        label=settings.label,
        kind=settings.kind,  # type: ignore[arg-type]
        labels=settings.labels,
        positive=settings.positive,
        overlap=settings.overlap,  # type: ignore[arg-type]
        train_rows=settings.train_rows,
        dev_rows=settings.dev_rows,
        seed=settings.seed if settings.data_seed is None else settings.data_seed,
    )


def predictions_of(task: Task, logits: NDArray[np.float32]) -> NDArray[Any]:
    """Class indices (n,), or the numbers (n,) themselves in regression."""
    return logits[:, 0] if task.kind == "regression" else logits.argmax(axis=1)


def scores_of(task: Task, logits: NDArray[np.float32]) -> dict[str, Score]:
    """The task's metrics on dev."""
    predictions = predictions_of(task, logits)
    return evaluate(task.metrics, task.dev.labels, predictions, positive=task.positive)


def check_labels(config: Mapping[str, Any], task: Task) -> None:
    """Raise ValueError where a classifier's classes are not those of ``task``, in its order."""
    # transformers leaves out what it fills in itself: two classes of these names.
    given = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
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
