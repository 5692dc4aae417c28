"""The four stages, from the pretrained model to the retrained one, in one resumable Trainer run."""

from __future__ import annotations

import contextlib
import errno
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import set_seed

from spatile import ops
from spatile.finetune.batches import Encoded, encode, plan_batches
from spatile.finetune.checkpoints import (
    load_classifier,
    load_tokenizer,
    quiet_transformers,
    save_checkpoint,
)
from spatile.finetune.data.task import Task
from spatile.finetune.progress import Progress
from spatile.finetune.recorder import AfterPruning, BeforePruning
from spatile.finetune.run_folder import RunFolder, disk_is_full
from spatile.finetune.scoring import predict_logits
from spatile.finetune.settings import Settings
from spatile.finetune.tasks import scores_of
from spatile.finetune.trainer import StageTrainer, training_arguments
from spatile.inference.architecture import read_architecture
from spatile.sparsity import Plan, Stages, StageSteps, match
from spatile.torch import Pruner, PruningCallback, last_checkpoint
from spatile.torch.history import norm_summary

__all__ = ["Job", "prepare", "stages_of", "train"]


@dataclass
class Job:
    """What training needs, loaded and checked; made by :func:`prepare`."""

    settings: Settings
    task: Task
    model: Any
    tokenizer: Any
    train_data: Encoded
    dev_data: Encoded
    plan: Plan
    stages: Stages
    steps: StageSteps


def prepare(settings: Settings, task: Task) -> Job:
    """Load the model and tokenize the data, with all random numbers drawn from the run's seed.

    Raises what would otherwise fail only after training: NotImplementedError for a model that
    spatile cannot run, ValueError for a plan that matches nothing, for inputs longer than the
    model, and for stages without a step.
    """
    set_seed(settings.seed)
    tokenizer = load_tokenizer(settings.model)
    # What loads a stage's checkpoint later cuts inputs where training did.
    tokenizer.model_max_length = settings.max_length
    model = load_classifier(settings.model, attention=settings.attention, task=task)
    architecture = read_architecture(model.config.to_dict(), source=settings.model)
    if settings.max_length > architecture.max_tokens:
        raise ValueError(
            f"finetune: max_length is {settings.max_length}, expected at most the "
            f"{architecture.max_tokens} positions of {settings.model}"
        )
    if architecture.types > 1 and "token_type_ids" not in tokenizer.model_input_names:
        # Without the name in the saved tokenizer, those who load it would feed other inputs.
        tokenizer.model_input_names = [*tokenizer.model_input_names, "token_type_ids"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names
    plan = settings.make_plan(model.config)
    match(plan, {name: tuple(p.shape) for name, p in model.named_parameters()})
    train_data = encode(tokenizer, task.train, settings.max_length)
    stages, steps = stages_of(settings, len(train_data))
    dev_data = encode(tokenizer, task.dev, settings.max_length)
    return Job(settings, task, model, tokenizer, train_data, dev_data, plan, stages, steps)


def train(run: RunFolder, job: Job, progress: Progress) -> None:
    """Train ``run`` to its end, from its last whole checkpoint where it has one."""
    settings, steps, data = job.settings, job.steps, job.train_data
    pruning = PruningCallback(
        job.plan,
        stages=job.stages,
        strength=settings.strength,  # type: ignore[arg-type]
        shrink=settings.shrink,
        method=settings.method,  # type: ignore[arg-type]
        eps=settings.eps,
        scope=settings.scope,  # type: ignore[arg-type]
    )
    keeper = _Keeper(run, job, pruning, progress)
    keeper.reached("pretrained", job.model)
    after = AfterPruning(steps, keeper.reached, progress)
    epoch = math.ceil(len(data) / settings.batch_size)
    with quiet_transformers():
        trainer = StageTrainer(
            job.model,
            training_arguments(
                run.trainer,
                settings,
                max_steps=steps.total,
                save_steps=settings.checkpoint_every or epoch,
            ),
            settings=settings,
            steps=steps,
            data=data,
            batches=plan_batches(
                data.lengths, settings.batch_size, steps=steps.total, seed=settings.seed
            ),
            callbacks=[BeforePruning(steps, keeper.reached), pruning, after],
            teacher=_teacher(run, data) if settings.distill > 0 else None,
        )
        with _interruptible(after.interrupt):
            try:
                trainer.train(resume_from_checkpoint=last_checkpoint(run.trainer))
            except Exception as error:
                if (isinstance(error, OSError) and error.filename) or not disk_is_full(error):
                    raise
                words = "no space left while saving; the run can be resumed"
                raise OSError(errno.ENOSPC, words, str(run.trainer)) from error
    progress.end()


def stages_of(settings: Settings, rows: int) -> tuple[Stages, StageSteps]:
    """The stages in optimizer steps, for a train split of so many rows.

    Raises ValueError where they come to no step at all.
    """
    epoch = math.ceil(rows / settings.batch_size)
    dense = round(settings.epochs_dense * epoch)
    reweighted = round((settings.epochs_dense + settings.epochs_reweighted) * epoch) - dense
    lengths = settings.epochs_dense, settings.epochs_reweighted, settings.epochs_retrain
    total = round(sum(lengths) * epoch)
    if total < 1:
        raise ValueError(
            f"finetune: epochs are {lengths[0]:g}, {lengths[1]:g} and {lengths[2]:g}, expected at "
            f"least one step of training; spatile prune works without any"
        )
    every = settings.reweight_every
    stages = Stages(
        dense,
        reweighted,
        total - dense - reweighted,
        unit="steps",
        ramp=settings.ramp,
        reweight_every=None if every is None else max(1, round(every * epoch)),
    )
    return stages, stages.resolve(steps_per_epoch=epoch, max_steps=total)


class _Keeper:
    """Evaluates and saves what each stage reached, once."""

    def __init__(
        self, run: RunFolder, job: Job, pruning: PruningCallback, progress: Progress
    ) -> None:
        self._run, self._job, self._pruning, self._progress = run, job, pruning, progress
        self._since = time.monotonic()

    def reached(self, name: str, model: Any) -> None:
        """``model`` is at the end of stage ``name``."""
        run = self._run
        seconds = time.monotonic() - self._since
        if name not in run.state["evaluations"]:
            # The untrained model is at hand already; every later one costs training.
            if name != "pretrained":
                save_checkpoint(run.stage(name), model, self._job.tokenizer)
            if name == "dense" and self._job.steps.reweighted_end > self._job.steps.dense_end:
                self._prune_without_penalty(model)
            if name in ("pruned", "retrained"):
                run.state["history"] = self._history(name)
            self._evaluate(name, model, seconds)
        self._since = time.monotonic()

    def _evaluate(self, name: str, model: Any, seconds: float | None) -> None:
        logits = predict_logits(model, self._job.dev_data, self._run.settings.eval_batch_size)
        scores = scores_of(self._job.task, logits)
        evaluation = {"scores": {k: s.to_json() for k, s in scores.items()}, "seconds": seconds}
        self._run.record(name, evaluation, logits)
        self._progress.say(f"{name}: " + ", ".join(str(score) for score in scores.values()))

    def _prune_without_penalty(self, model: Any) -> None:
        """Score the dense stage's weights pruned as they are (λ = 0), and put them back."""
        pruner = Pruner(model, self._job.plan, strength=0.0, scope=self._run.settings.scope)  # type: ignore[arg-type]
        kept = {m.name: pruner.weight(m).clone() for m in pruner.matrices}
        masks = pruner.choose_masks()
        for m in pruner.matrices:
            ops.apply_mask_(pruner.weight(m), masks[m.name], pattern=m.pattern)
        self._evaluate("lambda_zero", model, None)
        for m in pruner.matrices:
            pruner.weight(m).copy_(kept[m.name])

    def _history(self, name: str) -> dict[str, Any]:
        history = dict(self._pruning.history)
        if name == "retrained":
            history["norms"] = {**history["norms"], "end": norm_summary(self._pruning.pruner)}
        return history


def _teacher(run: RunFolder, data: Encoded) -> Callable[[], torch.Tensor]:
    def logits() -> torch.Tensor:
        # One pass over train serves all epochs: the teacher has no dropout, so it never changes.
        # Making a model may draw random numbers, at a moment that depends on where a run resumed.
        with torch.random.fork_rng(devices=[]):
            model = load_classifier(run.stage("dense"), attention=run.settings.attention)
        return torch.from_numpy(predict_logits(model, data, run.settings.eval_batch_size))

    return logits


@contextlib.contextmanager
def _interruptible(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C lets the step finish and be saved; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
