"""What the group lasso adds to a training step, and its ops against copying the weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import spatile as sp
from spatile import reference
from spatile.benchmarks.cases import Case, Peer, Target
from spatile.benchmarks.models import STEP_BATCH, classifier, training_inputs
from spatile.benchmarks.runner import Bench
from spatile.benchmarks.timing import Timing, share_of, sum_of
from spatile.sparsity import Plan

__all__ = ["measure"]

Array = np.ndarray[Any, Any]

SHARE = 0.03
OF_COPY_BANDWIDTH = 0.8
MATRIX = (3072, 768)
STRENGTH = 1e-6
TOLERANCE = 1e-5


def measure(bench: Bench) -> None:
    """The share of a step by method, then the ops alone."""
    for method in ("proximal", "gradient"):
        title = (f"regularizer, share of a step, {method}", STEP_BATCH, "float32")
        if bench.wants(*title):
            _share(bench, title, method)
    _against_copy(bench)


# ---- in a step ----------------------------------------------------------------------------------


def _share(bench: Bench, title: tuple[str, str, str], method: Any) -> None:
    """The penalty's parts of a whole step, with clipping and fused AdamW, timed inside it."""
    import torch

    from spatile.torch import Pruner

    model = classifier().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    pruner = Pruner(
        model, Plan.uniform("tile", 0.8), strength=STRENGTH, method=method, optimizer=optimizer
    )
    pruner.reweight()
    inputs = training_inputs()

    def forward_backward() -> None:
        model(**inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    parts = (
        forward_backward,
        pruner.before_step,
        optimizer.step,
        pruner.after_step,
        optimizer.zero_grad,
    )
    timings = _parts(parts, 4 * bench.options.seconds)
    penalty, step = sum_of([timings[1], timings[3]]), sum_of(timings)
    share = share_of(penalty, step)
    bench.keep_at_most(title, share, SHARE, ours=penalty, peer="the whole step", theirs=step)


def _parts(parts: Sequence[Callable[[], Any]], seconds: float) -> list[Timing]:
    """The parts of a step, each timed within whole steps, of which the first is not counted."""
    times: list[list[float]] = [[] for _ in parts]
    started = time.perf_counter()
    while len(times[0]) < 5 or time.perf_counter() - started < seconds:
        for part, kept in zip(parts, times, strict=True):
            start = time.perf_counter()
            part()
            kept.append(time.perf_counter() - start)
    return [Timing.of([[s] for s in t[1:]]) for t in times]


# ---- alone --------------------------------------------------------------------------------------


def _against_copy(bench: Bench) -> None:
    """One pass over the weights each: how near to the time that moving them takes."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal(MATRIX, dtype=np.float32)
    cases = [
        Case(
            f"regularizer, {op}",
            f"{MATRIX[0]} x {MATRIX[1]}, tiles",
            "float32",
            run=run,
            expected=want,
            tolerance=TOLERANCE,
            target=Target(OF_COPY_BANDWIDTH, "float32"),
        )
        for op, run, want in _ops(w)
    ]
    cases = [case for case in cases if bench.wants(case.title)]
    adding = [case for case in cases if case.case.endswith("add_group_lasso_grad_")]
    if len(cases) > len(adding):
        bench.compare([case for case in cases if case not in adding], _copies(bench, w))
    if adding:
        bench.compare(adding, _additions(bench, w))


def _ops(w: Array) -> list[tuple[str, Callable[[], Any], Any]]:
    """Name, run and result of each. The results are those of the first run: what is in place works
    on copies of its own, which later runs only shrink by next to nothing, or add to.
    """
    beta = sp.group_beta(w, pattern="tile")
    mask = sp.prune_mask(w, pattern="tile", sparsity=0.8)
    lasso: dict[str, Any] = {"pattern": "tile", "beta": beta, "strength": STRENGTH}
    grad, shrunk, masked = np.zeros_like(w), w.copy(), w.copy()
    gradient = reference.group_lasso_grad(w, **lasso)
    return [
        ("group_norms", lambda: sp.group_norms(w, pattern="tile"),
         reference.group_norms(w, pattern="tile")),
        ("group_lasso_grad", lambda: sp.group_lasso_grad(w, **lasso), gradient),
        ("add_group_lasso_grad_", lambda: sp.add_group_lasso_grad_(grad, w, **lasso), gradient),
        ("group_shrink_", lambda: sp.group_shrink_(shrunk, **lasso),
         reference.group_shrink_(w.copy(), **lasso)),
        ("prune_mask", lambda: sp.prune_mask(w, pattern="tile", sparsity=0.8),
         reference.prune_mask(w, pattern="tile", sparsity=0.8)),
        ("apply_mask_", lambda: sp.apply_mask_(masked, mask, pattern="tile"),
         reference.apply_mask_(w.copy(), mask, pattern="tile")),
    ]  # fmt: skip


def _additions(bench: Bench, w: Array) -> list[Peer]:
    """What also reads two arrays and writes one of them: half as many bytes again as a copy."""
    total = np.zeros_like(w)
    peers = [Peer("adding, numpy", "float32", lambda: np.add(total, w, out=total), w, 0.0)]
    torch = bench.peer("torch")
    if torch is not None:
        source, sums = torch.from_numpy(w), torch.zeros(w.shape)
        peers.append(Peer("adding, torch", "float32", lambda: sums.add_(source), w, 0.0))
    return peers


def _copies(bench: Bench, w: Array) -> list[Peer]:
    """NumPy's copy runs on one thread, torch's on all that it has."""
    copy = np.empty_like(w)

    def numpy_copy() -> Array:
        np.copyto(copy, w)
        return copy

    peers = [Peer("copying, numpy", "float32", numpy_copy, w, 0.0)]
    torch = bench.peer("torch")
    if torch is not None:
        source, target = torch.from_numpy(w), torch.empty(w.shape)
        peers.append(Peer("copying, torch", "float32", lambda: target.copy_(source), w, 0.0))
    return peers
