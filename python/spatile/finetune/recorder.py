"""Evaluating and saving the model at the moments between the stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spatile.finetune.progress import Progress
from spatile.sparsity import StageSteps

__all__ = ["AfterPruning", "BeforePruning", "StepProgress"]

Reached = Callable[[str, Any], None]


class BeforePruning(TrainerCallback):  # type: ignore[misc]
    """Stands before the pruning callback: calls ``reached("dense" | "reweighted", model)``."""

    def __init__(self, steps: StageSteps, reached: Reached) -> None:
        self._steps = steps
        self._reached = reached

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self._arrive(0, kwargs["model"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._arrive(state.global_step, kwargs["model"])

    def _arrive(self, step: int, model: Any) -> None:
        if step == self._steps.dense_end:
            self._reached("dense", model)
        if step == self._steps.reweighted_end > self._steps.dense_end:
            self._reached("reweighted", model)


class AfterPruning(TrainerCallback):  # type: ignore[misc]
    """Stands behind the pruning callback: calls ``reached("pruned" | "retrained", model)``.

    It also moves the progress on, has the Trainer save between stages, calls ``saved()`` after each
    saving, and, once :meth:`interrupt` was called, saves and raises KeyboardInterrupt.
    """

    def __init__(
        self,
        steps: StageSteps,
        reached: Reached,
        saved: Callable[[], None],
        progress: Progress,
    ) -> None:
        self._steps = steps
        self._reached = reached
        self._saved = saved
        self._progress = progress
        self._loss: float | None = None
        self._interrupted = False

    def interrupt(self) -> None:
        """Stop after the step that is being taken, when it has been saved."""
        self._interrupted = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0 == self._steps.pruned_at:
            self._reached("pruned", kwargs["model"])
        self._begin_stage(state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._loss = kwargs.get("logs", {}).get("loss", self._loss)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        step, steps = state.global_step, self._steps
        self._progress.advance(self._loss)
        boundary = step in (steps.dense_end, steps.reweighted_end, steps.total)
        if boundary:
            self._progress.end()
        if step == steps.pruned_at:
            self._reached("pruned", kwargs["model"])
        if step == steps.total:
            self._reached("retrained", kwargs["model"])
            control.should_save = False
            if self._interrupted:
                raise KeyboardInterrupt
        else:
            control.should_save = control.should_save or boundary or self._interrupted
        if boundary:
            self._begin_stage(step)
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._saved()
        if self._interrupted:
            raise KeyboardInterrupt

    def _begin_stage(self, step: int) -> None:
        steps = self._steps
        if step >= steps.total:
            return
        name = steps.stage(step)
        start, end = {
            "dense": (0, steps.dense_end),
            "reweighted": (steps.dense_end, steps.reweighted_end),
            "retrain": (steps.reweighted_end, steps.total),
        }[name]
        self._progress.begin(name, end - start, step - start)


class StepProgress(TrainerCallback):  # type: ignore[misc]
    """Shows the steps of a run under one title, up to ``end``."""

    def __init__(self, progress: Progress, title: str, end: int) -> None:
        self._progress = progress
        self._title = title
        self._end = end

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._progress.begin(self._title, self._end - state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self._progress.advance()
        control.should_save = False
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._progress.end()
