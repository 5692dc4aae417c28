"""What a Trainer's run says of its steps, learning rates and gradients."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerState, TrainingArguments

from spatile.sparsity import StageSteps

__all__ = ["forget_best", "steps_per_epoch", "total_learning_rate", "unscale"]


def steps_per_epoch(args: TrainingArguments, state: TrainerState, dataloader: Any) -> float:
    """Optimizer steps, from the arguments or the loader; ValueError where neither says."""
    if args.max_steps <= 0:
        return float(state.max_steps / args.num_train_epochs)
    try:
        batches = len(dataloader)
    except TypeError:
        raise ValueError(
            "stages: unit is 'epochs', but the data has no length; expected unit='steps'"
        ) from None
    steps: float = math.ceil(batches / args.gradient_accumulation_steps)
    return max(1.0, steps)


def unscale(optimizer: Any) -> None:
    """Take a GradScaler's factor out of the gradients where clipping has not done it already."""
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return
    try:
        scaler.unscale_(getattr(optimizer, "optimizer", optimizer))
    except RuntimeError as error:
        if "already been called" not in str(error):
            raise


def total_learning_rate(optimizer: Any, steps: StageSteps, scheduler: Any) -> float:
    """Σ learning rate × ramp over the reweighted stage, from the schedule where it can be asked."""
    now = float(optimizer.param_groups[0]["lr"])
    lambdas = getattr(scheduler, "lr_lambdas", None)
    total: float = 0.0
    for step in range(steps.dense_end, steps.reweighted_end):
        lr = float(scheduler.base_lrs[0] * lambdas[0](step)) if lambdas else now
        total += lr * steps.strength_factor(step)
    return total


def forget_best(state: TrainerState) -> None:
    """Have ``load_best_model_at_end`` choose among the models from here on."""
    state.best_metric = None
    state.best_model_checkpoint = None
    if hasattr(state, "best_global_step"):
        state.best_global_step = None
