"""One step of retraining on kept tiles against the dense step, and taking turns with torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

import spatile as sp
from spatile.benchmarks.cases import AMX, AVX512, Case, Peer, Target, check
from spatile.benchmarks.models import STEP_BATCH, classifier, pruned_copy, training_inputs
from spatile.benchmarks.runner import Bench
from spatile.benchmarks.timing import overhead_of, sum_of
from spatile.sparsity import Plan

__all__ = ["measure"]

SPARSITY = 0.8
TARGETS = {
    "float32": Target(1.8, "float32", AVX512),
    "bfloat16": Target(1.4, "bfloat16", AMX),
}
# |error| / max |reference|, of the logits and of two gradients, against torch in float32.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}

ALTERNATIONS = 10
ALTERNATION_LIMIT = 0.05
SHAPES = ((128, 384, 384), (512, 384, 1536))


def measure(bench: Bench) -> None:
    """The step in float32 and under autocast, then the alternation."""
    for dtype in ("float32", "bfloat16"):
        title = (f"train-step, {SPARSITY:.0%} of tiles pruned", STEP_BATCH, dtype)
        if bench.wants(*title) and (dtype == "float32" or bench.native_bfloat16):
            _step(bench, title)
    for rows, width_in, width_out in SHAPES:
        title = (
            "train-step, spatile and torch in turns",
            f"{rows} rows, {width_in} to {width_out}",
            "float32",
        )
        if bench.wants(*title):
            _alternation(bench, title, rows, width_in, width_out)


# ---- the step -----------------------------------------------------------------------------------


def _step(bench: Bench, title: tuple[str, str, str]) -> None:
    from spatile.torch import sparsify

    case, shape, dtype = title
    plan = Plan.uniform("tile", SPARSITY)
    dense = classifier()
    masked, _ = pruned_copy(dense, plan)
    ours, pruner = pruned_copy(dense, plan)
    sparsify(ours, pruner)
    ours.set_attn_implementation("spatile")
    # Dropout draws other numbers on either side: what is checked runs without.
    tolerance = TOLERANCE[dtype]
    check(", ".join(title), _gradients(ours, dtype), _gradients(masked, "float32"), tolerance)
    check(f"torch, {case}", _gradients(dense, dtype), _gradients(dense, "float32"), tolerance)
    ours_step = _whole_step(ours, dtype, pruner.after_step)
    peer_step = _whole_step(dense, dtype, lambda: None)
    bench.compare(
        [Case(case, shape, dtype, ours_step, [], 0.0, target=TARGETS[dtype])],
        [Peer("torch, dense", dtype, peer_step, [], 0.0)],
    )


def _autocast(dtype: str) -> Any:
    import torch

    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast("cpu", torch.bfloat16)


def _gradients(model: Any, dtype: str) -> tuple[Any, ...]:
    """Logits, and the gradients of the embeddings and the head: behind and before all layers."""
    model.eval()
    with _autocast(dtype):
        found = model(**training_inputs())
    found.loss.backward()
    embedding = model.bert.embeddings.word_embeddings.weight.grad.clone()
    head = model.classifier.weight.grad.clone()
    model.zero_grad()
    return found.logits, embedding, head


def _whole_step(model: Any, dtype: str, after: Callable[[], None]) -> Callable[[], list[Any]]:
    """All that a step does, with the optimizer's fused form; it returns nothing to compare."""
    import torch

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    inputs = training_inputs()

    def step() -> list[Any]:
        optimizer.zero_grad()
        with _autocast(dtype):
            loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        after()
        return []

    return step


# ---- taking turns -------------------------------------------------------------------------------


def _alternation(
    bench: Bench, title: tuple[str, str, str], rows: int, width_in: int, width_out: int
) -> None:
    """A loop of products of ours and of torch's by turns against two loops of the same products."""
    import torch

    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, width_in), dtype=np.float32)
    packed = sp.pack(rng.standard_normal((width_out, width_in), dtype=np.float32))
    out = np.empty((rows, width_out), np.float32)
    dense = packed.to_dense()
    # The result's memory is shared: two working sets would be a matter of caches.
    left, right, result = (torch.from_numpy(a) for a in (x, dense, out))

    def ours() -> None:
        sp.linear(x, packed, out=out)

    def theirs() -> None:
        torch.mm(left, right.T, out=result)

    def repeated(*calls: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(ALTERNATIONS):
                for call in calls:
                    call()

        return run

    ours()
    found = out.copy()
    theirs()
    check(", ".join(title), found, out, 1e-4)
    sides = [repeated(ours, theirs), repeated(ours), repeated(theirs)]
    both, *alone = bench.interleave(", ".join(title), sides)
    apart = sum_of(alone)
    bench.keep_at_most(
        title,
        overhead_of(both, apart),
        ALTERNATION_LIMIT,
        ours=both,
        peer="the two apart",
        theirs=apart,
    )
