"""The main job: fine-tune, reweight, prune, retrain, pack, measure, report.

Source of the procedure: E.T. (SC 2021).
"""

from __future__ import annotations

import os
from typing import Any

from spatile.finetune.data.task import Task
from spatile.finetune.fingerprint import fingerprint
from spatile.finetune.finish import finish
from spatile.finetune.progress import Progress
from spatile.finetune.run_folder import RunFolder
from spatile.finetune.settings import Settings
from spatile.finetune.tasks import anchored, load_data
from spatile.finetune.training import prepare, train
from spatile.finetune.twin import Twin
from spatile.finetune.weights import resolve_model
from spatile.sparsity import Plan

__all__ = ["finetune"]


def finetune(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    sparsity: float,
    out: str | os.PathLike[str],
    plan: Plan | None = None,
    resume: bool = False,
    threads: int | None = None,
    timing_rounds: int = 5,
    progress: Progress | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Fine-tune ``model`` on ``data`` while pruning it; returns the report that ``out`` holds too.

    ``model`` is a checkpoint's folder, a name on the hub or ``"minilm"``; ``data`` a folder or a
    hub name (see :func:`spatile.finetune.data.load_task`). ``sparsity`` is the fraction of the
    pattern's groups that is pruned, 0 where only tokens or heads are to go (``keep_tokens``,
    ``keep_heads``). Of the encoder's weights that is as many where all groups are of one size, and
    where they are not and compete (``scope="global"`` with rows or columns) more or fewer: the
    report says how many. ``plan`` replaces the uniform plan that ``pattern`` and ``sparsity`` mean.
    ``settings`` are the fields of :class:`Settings`. The stages are E.T.'s: dense, reweighted,
    prune, retrain, of ``epochs_dense``, ``epochs_reweighted`` and ``epochs_retrain`` epochs.

    ``out`` gets a checkpoint per stage, the packed model, ``report.json`` and ``report.html``. A
    run that was killed goes on with ``resume=True`` and ends with the same weights, bit by bit,
    on the same machine with the same ``threads`` (of PyTorch and of spatile; default: theirs).

    Raises FileExistsError where ``out`` holds anything (unless resuming), ValueError for settings
    or data that differ from the resumed run's, naming them, RuntimeError where the packed model
    does not agree with the trained one, KeyboardInterrupt after Ctrl-C, once a checkpoint is
    written.

    >>> from spatile.finetune import finetune                                   # doctest: +SKIP
    >>> report = finetune("minilm", "data/qa", sparsity=0.5, out="run")         # doctest: +SKIP
    >>> report["scores"]["retrained"]["accuracy"]["value"]                      # doctest: +SKIP
    0.78
    """
    progress = Progress(quiet=True) if progress is None else progress
    if settings.get("dev_ids") is not None:
        settings["dev_ids"] = anchored(settings["dev_ids"])
    wanted = Settings(
        model=resolve_model(os.fspath(model)),
        data=anchored(data),
        sparsity=sparsity,
        plan=None if plan is None else plan.to_dict(),
        **settings,
    )
    run = _open(out, wanted) if resume else None
    if run is None:
        RunFolder.check_new(out)
    _set_threads(threads)
    task = load_data(wanted)
    if run is not None and run.state["data"] != fingerprint(task):
        raise ValueError(
            f"finetune: data is {wanted.data}, whose rows are not those that {run.path} was "
            f"started with, expected the same"
        )
    if run is None or "retrained" not in run.state["evaluations"]:
        job = prepare(wanted, task)
        # Only now: what can't be run must not leave a folder that is then in the way.
        run = RunFolder.create(out, wanted, data=fingerprint(task)) if run is None else run
        _announce(wanted, task, progress)
        train(run, job, progress)
    if wanted.twin and "lambda_zero" not in run.state["evaluations"]:
        # The job's model has been trained by now, and its generators have moved on.
        Twin(run, prepare(wanted, task)).train(progress)
    return finish(run, task, progress, rounds=timing_rounds)


def _open(out: str | os.PathLike[str], wanted: Settings) -> RunFolder:
    run = RunFolder.open(out)
    for name in run.settings.differences(wanted):
        before, now = getattr(run.settings, name), getattr(wanted, name)
        raise ValueError(
            f"finetune: {name} is {now!r}, expected {before!r} as in the run that {run.path} holds"
        )
    return run


def _set_threads(threads: int | None) -> None:
    if threads is None:
        return
    import torch

    import spatile

    spatile.set_num_threads(threads)
    torch.set_num_threads(threads)


def _announce(s: Settings, task: Task, progress: Progress) -> None:
    progress.say(
        f"{task.name}: {len(task.train)} train rows, {len(task.dev)} dev rows; model {s.model}; "
        f"epochs {s.epochs_dense:g} dense, {s.epochs_reweighted:g} reweighted, "
        f"{s.epochs_retrain:g} retrain; batch {s.batch_size}, lr {s.lr:g}, "
        f"at most {s.max_length} tokens"
    )
    for note in task.notes:
        progress.say(f"note: {note}")
