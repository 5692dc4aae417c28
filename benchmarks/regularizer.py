"""What the group lasso adds to a training step, and its ops against copying the weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

import spatile as sp
from benchmarks.harness import Bench, Timing
from spatile import reference
from spatile.sparsity import Plan
from spatile.torch import Pruner

SHARE = 0.03
SHAPE = (3072, 768)
STRENGTH = 1e-6


def minilm() -> BertForSequenceClassification:
    """MiniLM-L6's shape with random weights."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        attn_implementation="sdpa",
    )
    return BertForSequenceClassification(config)


def timed(parts: Sequence[Callable[[], Any]], seconds: float) -> list[Timing]:
    """The parts of a step, each timed within whole steps."""
    times: list[list[float]] = [[] for _ in parts]
    started = time.perf_counter()
    while len(times[0]) < 5 or time.perf_counter() - started < seconds:
        for part, kept in zip(parts, times, strict=True):
            start = time.perf_counter()
            part()
            kept.append((time.perf_counter() - start) * 1e3)
    return [Timing(min(t[1:]), float(np.median(t[1:]))) for t in times]


def training_step(bench: Bench, method: str) -> None:
    """The penalty's share of a step of 16 × 64 tokens with clipping and fused AdamW."""
    name = f"MiniLM step of 16 × 64, {method}"
    if not bench.wants(name):
        return
    model = minilm().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    plan = Plan.uniform("tile", 0.8)
    pruner = Pruner(model, plan, strength=STRENGTH, method=method, optimizer=optimizer)
    pruner.reweight()
    ids = torch.randint(1000, 30000, (16, 64))
    labels = torch.zeros(16, dtype=torch.long)

    def forward_backward() -> None:
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    step_parts = (
        forward_backward,
        pruner.before_step,
        optimizer.step,
        pruner.after_step,
        optimizer.zero_grad,
    )
    parts = timed(step_parts, 4 * bench.options.seconds)
    penalty = Timing(*(getattr(parts[1], f) + getattr(parts[3], f) for f in ("minimum", "median")))
    step = Timing(*(sum(getattr(p, f) for p in parts) for f in ("minimum", "median")))
    print(f"{name}: the penalty is {penalty.median / step.median:.2%} of the step")
    bench.record(
        name,
        penalty,
        step,
        0.0,
        peer_name=f"the allowed {SHARE:.0%} of the step",
        target=1.0,
        ratio=SHARE * step.median / penalty.median,
    )


def against_copy(bench: Bench) -> None:
    """One pass over the weights each: how near to the time that copying them takes."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal(SHAPE, dtype=np.float32)
    copy = np.empty_like(w)
    beta = sp.group_beta(w, pattern="tile")
    grad = np.zeros_like(w)
    keywords = {"pattern": "tile", "beta": beta, "strength": STRENGTH}
    ours: dict[str, tuple[Callable[[], Any], Any]] = {
        "group_norms": (
            lambda: sp.group_norms(w, pattern="tile"),
            reference.group_norms(w, pattern="tile"),
        ),
        "group_lasso_grad": (
            lambda: sp.group_lasso_grad(w, **keywords),
            reference.group_lasso_grad(w, **keywords),
        ),
        "add_group_lasso_grad_": (
            lambda: sp.add_group_lasso_grad_(grad, w, **keywords),
            reference.group_lasso_grad(w, **keywords),
        ),
        "group_shrink_": (
            lambda: sp.group_shrink_(copy, **keywords),
            reference.group_shrink_(w.copy(), **keywords),
        ),
    }
    for op, (run, want) in ours.items():
        name = f"{op}, {SHAPE[0]} × {SHAPE[1]}"
        if not bench.wants(name):
            continue
        np.copyto(copy, w)
        grad[...] = 0
        bench.compare(
            name,
            run,
            lambda: np.copyto(grad, w),
            reference=want,
            tolerance=1e-5,
            peer_name="copying the weights",
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """The step's share by method, then the ops alone."""
    bench = Bench("regularizer: the group lasso on 16×16 tiles", arguments)
    for threads in bench.thread_counts:
        bench.use_threads(threads)
        for method in ("proximal", "gradient"):
            training_step(bench, method)
        against_copy(bench)
    bench.finish()


if __name__ == "__main__":
    main()
