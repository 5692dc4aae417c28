"""`sp.attention` and `sp.attention_backward` against torch's fused attention and its gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

import spatile as sp
from spatile import reference
from spatile.benchmarks.attention import HEADS, LENGTHS, WIDTH, heads_first, tokens_first
from spatile.benchmarks.cases import AVX512, Case, Peer, Target
from spatile.benchmarks.runner import Bench

__all__ = ["measure"]

TOLERANCE = 1e-5  # |error| / max |reference|, of each of the three gradients


def measure(bench: Bench) -> None:
    """One sequence of each length, forward and backward."""
    rng = np.random.default_rng(0)
    for length in LENGTHS:
        shape = f"1 x {length} tokens, {HEADS} heads of {WIDTH}"
        if bench.wants("attention, forward and backward", shape, "float32"):
            _both(bench, rng, length, shape)


def _both(bench: Bench, rng: np.random.Generator, length: int, title: str) -> None:
    shape = (1, length, HEADS, WIDTH)
    q, k, v, grad = (rng.standard_normal(shape, dtype=np.float32) for _ in range(4))

    def ours() -> tuple[Any, ...]:
        done = sp.attention(q, k, v, return_lse=True)
        return tuple(sp.attention_backward(grad, q, k, v, done.out, done.lse)[:3])

    done = reference.attention(q, k, v, return_lse=True)
    assert isinstance(done, reference.AttentionResult) and done.lse is not None
    want = reference.attention_backward(grad, q, k, v, done.out, done.lse)[:3]
    case = Case(
        "attention, forward and backward",
        title,
        "float32",
        run=ours,
        expected=want,
        tolerance=TOLERANCE,
        target=Target(1.3, "float32", AVX512),
        flop=14.0 * length * length * HEADS * WIDTH,  # two products forward, five backward
    )
    torch = bench.peer("torch")
    if torch is None:
        return
    tensors = [heads_first(torch, x).requires_grad_() for x in (q, k, v)]
    grad_torch = heads_first(torch, grad)
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def peer() -> Any:
        return torch.autograd.grad(sdpa(*tensors), tensors, grad_torch)

    def result(found: Any) -> list[Any]:
        return [tokens_first(x) for x in found]

    bench.compare([case], [Peer("torch SDPA", "float32", peer, want, TOLERANCE, result)])
