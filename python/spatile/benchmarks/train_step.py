"""One step of retraining on kept tiles against the dense step, and taking turns with torch."""

from __future__ import annotations

import contextlib
import copy
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
    try:
        from spatile.torch import sparsify  # type: ignore[attr-defined]
    except ImportError:
        bench.leave_out(f"{', '.join(title)}: spatile.torch.sparsify is not there")
        return
    case, shape, dtype = title
    dense = classifier()
    pruned = pruned_copy(dense, Plan.uniform("tile", SPARSITY))
    ours = copy.deepcopy(pruned)
    ours.set_attn_implementation("spatile")
    try:
        sparsify(ours)
    except NotImplementedError as error:
        bench.leave_out(f"{', '.join(title)}: not supported: {error}")
        return
    want = {name: _gradients(model, "float32")() for name, model in
            (("dense", dense), ("pruned", pruned))}  # fmt: skip
    # Dropout draws other numbers on either side: what is checked runs without.
    check(", ".join(title), _gradients(ours, dtype)(), want["pruned"], TOLERANCE[dtype])
    check(f"torch, {case}", _gradients(dense, dtype)(), want["dense"], TOLERANCE[dtype])
    steps = [_whole_step(model.train(), dtype) for model in (ours, dense)]
    bench.compare(
        [Case(case, shape, dtype, steps[0], _done(), 0.0, target=TARGETS[dtype])],
        [Peer("torch, dense", dtype, steps[1], _done(), 0.0)],
    )


def _autocast(dtype: str) -> Any:
    import torch

    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast("cpu", torch.bfloat16)


def _gradients(model: Any, dtype: str) -> Callable[[], tuple[Any, ...]]:
    """Logits, and the gradients of the embeddings and the head: behind and before all layers."""
    inputs = training_inputs()

    def run() -> tuple[Any, ...]:
        model.eval()
        with _autocast(dtype):
            found = model(**inputs)
        found.loss.backward()
        embedding = model.bert.embeddings.word_embeddings.weight.grad.clone()
        head = model.classifier.weight.grad.clone()
        model.zero_grad()
        return found.logits, embedding, head

    return run


def _whole_step(model: Any, dtype: str) -> Callable[[], Any]:
    """Everything that a step does, the optimizer's fused form on both sides."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    inputs = training_inputs()

    def step() -> Any:
        optimizer.zero_grad()
        with _autocast(dtype):
            loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return _done()

    return step


def _done() -> Any:
    return np.ones(1)


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
