"""The λ = 0 twin: the reweighted stage once more, same batches, same dropout, without the penalty.

It starts from the Trainer's own checkpoint at the end of the dense stage, of which a copy is kept.
"""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

import torch

from spatile.finetune.checkpoints import load_classifier, quiet_transformers
from spatile.finetune.job import Job
from spatile.finetune.keeper import Keeper
from spatile.finetune.layers import use_layers
from spatile.finetune.progress import Progress
from spatile.finetune.recorder import StepProgress
from spatile.finetune.run_folder import RunFolder, write_folder
from spatile.finetune.teacher import Teacher
from spatile.finetune.trainer import StageTrainer, training_arguments
from spatile.torch import Pruner
from spatile.torch.checkpoint import read_state

__all__ = ["Twin"]


class Twin:
    """The twin of ``run``; it does nothing unless the run's settings ask for it."""

    def __init__(self, run: RunFolder, job: Job) -> None:
        self._run, self._job = run, job
        steps = job.steps
        self.wanted = run.settings.twin and steps.reweighted_end > steps.dense_end
        self._name = f"checkpoint-{steps.dense_end}"
        self._folder = run.path / "twin"

    def keep_start(self) -> None:
        """Copy the Trainer's checkpoint of the end of the dense stage, once it is whole."""
        source, target = self._run.trainer / self._name, self._folder / self._name
        if not self.wanted or target.exists() or read_state(source) is None:
            return
        write_folder(target, functools.partial(_link, source))

    def train(self, progress: Progress) -> None:
        """Train the twin, prune it, and note its scores and its mask's agreement with the run's."""
        run, job = self._run, self._job
        steps = job.steps
        if not self.wanted:
            return
        use_layers(run, job.model)
        teacher = None
        if run.settings.teaches:
            teacher = Teacher(
                run.stage("dense"),
                run.settings,
                job.train_data,
                linear=run.state["linear"] == "spatile",
            )
        arguments = training_arguments(
            self._folder / "trainer",
            run.settings,
            max_steps=steps.reweighted_end,
            save_steps=steps.total + 1,
        )
        start = self._folder / self._name
        with quiet_transformers():
            trainer = StageTrainer(
                job,
                arguments,
                callbacks=[StepProgress(progress, "reweighted, λ = 0", steps.reweighted_end)],
                teacher=teacher,
            )
            trainer.train(resume_from_checkpoint=str(start) if start.is_dir() else None)
        scope = run.settings.ranks_within
        pruner = Pruner(job.model, job.plan, strength=0.0, scope=scope)  # type: ignore[arg-type]
        before = _energy(pruner)
        masks = pruner.prune()
        self._compare(masks, 1.0 - _energy(pruner) / before)
        Keeper(run, job, progress).evaluate("lambda_zero", job.model, None)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _compare(self, masks: dict[str, torch.Tensor], removed: float) -> None:
        """Put the twin's figures in place of those of the stage's start."""
        pruned = load_classifier(self._run.stage("pruned"))
        norms = Pruner(pruned, self._job.plan, strength=0.0).norms()
        same = {name: (norms[name] > 0) == mask for name, mask in masks.items()}
        total = sum(equal.numel() for equal in same.values())
        lasso = self._run.state["history"]["reweighted"]
        lasso["mask_agreement"] = {
            "all": sum(int(equal.sum()) for equal in same.values()) / total,
            "matrices": {name: float(equal.float().mean()) for name, equal in same.items()},
        }
        lasso["energy_removed_without"] = removed


def _energy(pruner: Pruner) -> float:
    return sum(float(pruner.weight(m).double().square().sum()) for m in pruner.matrices)


def _link(source: Path, target: Path) -> None:
    # Trainer never writes into a checkpoint again, so a second name for its files is a copy.
    shutil.copytree(source, target, dirs_exist_ok=True, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
