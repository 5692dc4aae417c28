"""Norms, the lasso's gradient and masks: what share of a device copy's bandwidth they reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import spatile as sp
from spatile import reference
from spatile.benchmarks.cases import WrongAnswerError
from spatile.benchmarks.gpu.run import GpuBench, check
from spatile.benchmarks.gpu.timing import Side, time_in_turns

__all__ = ["measure"]

SIDE = 8192  # 256 MiB of float32: far more than any cache holds
SMALL = 512  # of the same ops, checked against the reference
OF_COPY_BANDWIDTH = 0.85
LASSO: dict[str, Any] = {"pattern": "tile", "strength": 1e-6}
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Op:
    """``moved``: bytes read and written, in units of the matrix."""

    name: str
    moved: float
    run: Callable[[Any], Any]
    expected: Callable[[Any], Any]


def _masked(w: Any) -> Any:
    mask = reference.prune_mask(w, pattern="tile", sparsity=0.8)
    return reference.apply_mask_(w, mask, pattern="tile")


OPS = (
    Op(
        "group_norms",
        1,
        lambda w: sp.group_norms(w, pattern="tile"),
        lambda w: reference.group_norms(w, pattern="tile"),
    ),
    Op(
        "group_lasso_grad",
        2,
        lambda w: sp.group_lasso_grad(w, **LASSO),
        lambda w: reference.group_lasso_grad(w, **LASSO),
    ),
    Op(
        "group_shrink_",
        2,
        lambda w: sp.group_shrink_(w, **LASSO),
        lambda w: reference.group_shrink_(w, **LASSO),
    ),
)


def measure(bench: GpuBench) -> None:
    """Each op's bytes per second over the copy's."""
    w = torch.randn((SIDE, SIDE), device="cuda")
    mask = sp.prune_mask(w, pattern="tile", sparsity=0.8)
    # Dropped tiles are not read, only zeroed, and kept ones not touched: 0.8 of a write at least.
    masking = Op("apply_mask_", 0.8, lambda x: sp.apply_mask_(x, mask, pattern="tile"), _masked)
    for op in (*OPS, masking):
        title = (f"bandwidth, {op.name}", f"{SIDE} x {SIDE}, tiles", "float32")
        if bench.wants(*title):
            try:
                _check(op)
            except (RuntimeError, WrongAnswerError) as error:
                bench.leave_out(f"{op.name}: {error}")
                continue
            _bandwidth(bench, title, op, w)


def _check(op: Op) -> None:
    """On a matrix that the reference can do."""
    small = torch.randn((SMALL, SMALL), device="cuda")
    host = small.double().cpu().numpy()
    run = op.run
    if op.expected is _masked:  # the mask of this matrix, not of the large one
        mask = sp.prune_mask(small, pattern="tile", sparsity=0.8)

        def run(w: Any) -> Any:
            return sp.apply_mask_(w, mask, pattern="tile")

    want = op.expected(host)
    check(op.name, run(small), want, TOLERANCE)


def _bandwidth(bench: GpuBench, title: tuple[str, str, str], op: Op, w: Any) -> None:
    source, target = w.clone(), torch.empty_like(w)
    sides = [Side.of(lambda: op.run(source)), Side.of(lambda: target.copy_(w))]
    ours, copy = time_in_turns(sides, seconds=bench.seconds)
    share = (op.moved / ours.median) / (2 / copy.median)
    bench.keep([bench.row(title, ours, "device copy", copy, ratio=share, target=OF_COPY_BANDWIDTH)])
