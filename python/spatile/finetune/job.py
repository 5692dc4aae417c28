"""What training needs, loaded and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spatile.finetune.batches import Encoded
from spatile.finetune.data.task import Task
from spatile.finetune.settings import Settings
from spatile.sparsity import Plan, Stages, StageSteps

__all__ = ["Job"]


@dataclass
class Job:
    """Made by :func:`spatile.finetune.training.prepare`."""

    settings: Settings
    task: Task
    model: Any
    tokenizer: Any
    train_data: Encoded
    dev_data: Encoded
    plan: Plan
    stages: Stages
    steps: StageSteps
