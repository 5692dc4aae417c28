"""The four stages, from the pretrained model to the retrained one, in one resumable Trainer run."""

from __future__ import annotations

import contextlib
import errno
import math
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, set_seed

from spatile.finetune.batches import encode
from spatile.finetune.checkpoints import load_classifier, load_tokenizer, quiet_transformers
from spatile.finetune.data.task import Task
from spatile.finetune.job import Job
from spatile.finetune.keeper import Keeper
from spatile.finetune.layers import use_layers
from spatile.finetune.progress import Progress
from spatile.finetune.recorder import AfterPruning, BeforePruning
from spatile.finetune.run_folder import RunFolder, disk_is_full
from spatile.finetune.settings import Settings
from spatile.finetune.teacher import Teacher
from spatile.finetune.trainer import StageTrainer, training_arguments
from spatile.finetune.twin import Twin
from spatile.inference.architecture import read_architecture
from spatile.sparsity import Stages, StageSteps, Structure
from spatile.torch import (
    HeadPruning,
    PruningCallback,
    TokenPruning,
    apply_structure,
    last_checkpoint,
)
from spatile.torch.checkpoint import read_state
from spatile.torch.parameters import planned_matrices
from spatile.torch.structure_pruning import check_structure_plan, layers_left

__all__ = ["prepare", "stages_of", "train"]


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
    # A checkpoint that has lost heads, neurons or layers holds zeros in their places.
    apply_structure(model)
    plan = settings.make_plan(model.config)
    planned_matrices(model, plan)
    check_structure_plan(model, plan)
    _check_schedules(settings, layers_left(model, plan), architecture.max_tokens)
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
        scope=settings.ranks_within,  # type: ignore[arg-type]
        saliency=settings.ranks_by,  # type: ignore[arg-type]
        calibration=settings.calibration_rows,
        damping=settings.damping,
        sparse="auto" if settings.sparse else False,
    )
    checkpoint = last_checkpoint(run.trainer)
    _cut_as_saved(job.model, checkpoint)
    use_layers(run, job.model)
    keeper = Keeper(run, job, progress, pruning)
    keeper.reached("pretrained", job.model)
    twin = Twin(run, job)
    after = AfterPruning(steps, keeper.reached, twin.keep_start, progress)
    epoch = math.ceil(len(data) / settings.batch_size)
    arguments = training_arguments(
        run.trainer,
        settings,
        max_steps=steps.total,
        save_steps=settings.checkpoint_every or epoch,
    )
    teacher = None
    if settings.teaches:
        teacher = Teacher(
            run.stage("dense"), settings, data, linear=run.state["linear"] == "spatile"
        )
    with quiet_transformers():
        trainer = StageTrainer(
            job,
            arguments,
            callbacks=[
                BeforePruning(steps, keeper.reached),
                *_cascade(settings, steps.reweighted_end, job.stages.gradual),
                pruning,
                after,
            ],
            teacher=teacher,
        )
        with _interruptible(after.interrupt), _named_when_full(run.trainer):
            twin.keep_start()
            trainer.train(resume_from_checkpoint=checkpoint)
        progress.end()


def _cascade(settings: Settings, delay: float, gradual: float) -> list[TrainerCallback]:
    """Tokens and heads go while the retrain stage's prunings do."""
    kinds = {"tokens": TokenPruning, "heads": HeadPruning}
    return [
        kinds[kind](schedule, delay=delay, gradual=gradual, unit="steps")
        for kind, schedule in settings.schedules.items()
        if schedule is not None
    ]


def _check_schedules(settings: Settings, n_layers: int, max_tokens: int) -> None:
    """Raise ValueError for what the layers that will be left can't keep."""
    for kind, schedule in settings.schedules.items():
        if schedule is None:
            continue
        try:
            schedule.keep(n_layers, unit=kind, length=max_tokens)  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"finetune: keep_{kind}: {error}") from None


def _cut_as_saved(model: Any, checkpoint: str | None) -> None:
    """Give a fresh model the heads, neurons and layers that a checkpoint's weights are for."""
    saved = None if checkpoint is None else read_state(checkpoint)
    found = None if saved is None else saved.values["history"].get("structure")
    if found is not None:
        apply_structure(model, Structure.from_dict(found))


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
    retrain = total - dense - reweighted
    spread = round(settings.gradual * retrain)
    # Gradients tell nothing until some steps were taken; there may be none before this stage.
    by_gradients = settings.ranks_by in ("movement", "taylor")
    prunings = min(settings.prunings, max(1, spread) if by_gradients else 1 + spread)
    stages = Stages(
        dense,
        reweighted,
        retrain,
        unit="steps",
        ramp=settings.ramp,
        prunings=prunings,
        gradual=spread,
        delay=min(retrain, max(1, spread // prunings)) if by_gradients else 0,
        reweight_every=None if every is None else max(1, round(every * epoch)),
    )
    return stages, stages.resolve(steps_per_epoch=epoch, max_steps=total)


@contextlib.contextmanager
def _named_when_full(path: Path) -> Iterator[None]:
    """Have a full disk say what could not be saved, whichever library found it full."""
    try:
        yield
    except Exception as error:
        if (isinstance(error, OSError) and error.filename) or not disk_is_full(error):
            raise
        words = "no space left while saving; the run can be resumed"
        raise OSError(errno.ENOSPC, words, str(path)) from error


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
