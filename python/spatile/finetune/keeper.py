"""Evaluating and saving what each stage reached, once, however often the run was resumed."""

from __future__ import annotations

import time
from typing import Any

from spatile.finetune.checkpoints import save_checkpoint
from spatile.finetune.job import Job
from spatile.finetune.progress import Progress
from spatile.finetune.run_folder import RunFolder
from spatile.finetune.scoring import predict_logits
from spatile.finetune.tasks import scores_of
from spatile.torch import Pruner, PruningCallback
from spatile.torch.history import norm_summary

__all__ = ["Keeper"]


class Keeper:
    """Its :meth:`reached` is what the callbacks between the stages call."""

    def __init__(
        self,
        run: RunFolder,
        job: Job,
        progress: Progress,
        pruning: PruningCallback | None = None,
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
            steps = self._job.steps
            # Only norms, pruned at once, tell what the penalty itself did to them.
            by_norm = run.settings.ranks_by == "magnitude" and len(steps.prunings) == 1
            alone = steps.reweighted_end == steps.dense_end or run.settings.twin
            if name == "dense" and by_norm and not alone:
                self._prune_without_penalty(model)
            if name in ("pruned", "retrained") and self._pruning is not None:
                run.state["history"] = _history(self._pruning, name)
            self.evaluate(name, model, seconds)
        self._since = time.monotonic()

    def evaluate(self, name: str, model: Any, seconds: float | None) -> None:
        """Score ``model`` on dev and note it under ``name``."""
        logits = predict_logits(model, self._job.dev_data, self._run.settings.eval_batch_size)
        scores = scores_of(self._job.task, logits)
        evaluation = {"scores": {k: s.to_json() for k, s in scores.items()}, "seconds": seconds}
        self._run.record(name, evaluation, logits)
        self._progress.say(f"{name}: " + ", ".join(str(score) for score in scores.values()))

    def _prune_without_penalty(self, model: Any) -> None:
        """Score the dense stage's weights pruned as they are (λ = 0), and put them back."""
        scope = self._run.settings.ranks_within
        pruner = Pruner(model, self._job.plan, strength=0.0, scope=scope)  # type: ignore[arg-type]
        kept = {m.name: pruner.weight(m).clone() for m in pruner.matrices}
        pruner.prune()
        self.evaluate("lambda_zero", model, None)
        for m in pruner.matrices:
            pruner.weight(m).copy_(kept[m.name])


def _history(pruning: PruningCallback, name: str) -> dict[str, Any]:
    history = dict(pruning.history)
    if name == "retrained":
        history["norms"] = {**history["norms"], "end": norm_summary(pruning.pruner)}
    return history
