"""Second-order pruning of a whole model, against how long its user is asked to wait.

Nobody else offers it for tiles and for the model's own output, so what stands beside it is a limit.
"""

from __future__ import annotations

import copy
import resource
import sys
import time
from typing import Any

from spatile.benchmarks.cases import WrongAnswerError
from spatile.benchmarks.models import MRPC_LENGTHS, Batch, classifier, pruned_copy
from spatile.benchmarks.runner import Bench
from spatile.benchmarks.timing import Estimate, Timing
from spatile.sparsity import Plan

__all__ = ["measure"]

SPARSITY = 0.5
LIMITS = {"MiniLM-L6": 60.0, "BERT-base": 600.0}  # seconds on two cores
ROWS = 480
"""Texts as long as MRPC's: the 25,000 tokens that ``spatile finetune`` looks at."""


def measure(bench: Bench) -> None:
    """Half of all tiles, ranked over all matrices together."""
    for name, limit in LIMITS.items():
        title = ("second-order, half of all tiles", f"{name}, {ROWS} pairs", "float32")
        if bench.wants(*title):
            _model(bench, title, name, limit)


def _model(bench: Bench, title: tuple[str, str, str], name: str, limit: float) -> None:
    from spatile.torch import Pruner

    plan = Plan.uniform("tile", SPARSITY)
    dense = classifier(name)
    batches = _batches()
    by_norm, _ = pruned_copy(dense, plan)
    model = copy.deepcopy(dense)
    before = _peak_bytes()
    started = time.perf_counter()
    pruner = Pruner(
        model,
        plan,
        strength=0.0,
        scope="global",
        saliency="second-order",
        calibration=batches,
    )
    pruner.prune()
    seconds = time.perf_counter() - started
    _check(", ".join(title), [dense, model, by_norm], batches[0])
    grown = max(0, _peak_bytes() - before) / 2**30
    bench.keep_at_least(
        title,
        Estimate.of([limit / seconds]),
        1.0,
        note=f"{seconds:.1f} s of at most {limit:g}; peak memory grew by {grown:.2f} GiB",
        ours=Timing.of([[seconds]]),
        peer="the limit",
        theirs=Timing.of([[limit]]),
    )


def _batches() -> list[dict[str, Any]]:
    """As a calibration draws them: sorted by length, 32 at a time."""
    import torch

    lengths = sorted((MRPC_LENGTHS * (ROWS // len(MRPC_LENGTHS) + 1))[:ROWS], reverse=True)
    parts = (tuple(lengths[i : i + 32]) for i in range(0, ROWS, 32))
    return [{k: torch.from_numpy(v) for k, v in Batch(part).padded.items()} for part in parts]


def _check(title: str, models: list[Any], batch: dict[str, Any]) -> None:
    """The output moved less than it does where as many tiles go by norm."""
    import torch

    with torch.no_grad():
        dense, pruned, by_norm = (model.eval()(**batch).logits for model in models)
    if not (pruned - dense).norm() < (by_norm - dense).norm():
        raise WrongAnswerError(f"{title}: the output moved more than by norm")


def _peak_bytes() -> int:
    """Of the process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
