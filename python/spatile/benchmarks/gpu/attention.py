"""`sp.attention` with importance sums, and gradients, against each backend of torch's SDPA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import spatile as sp
from spatile.benchmarks.cases import Case, Peer, Target
from spatile.benchmarks.gpu.run import GpuBench

__all__ = ["measure", "shapes"]

HEADS, WIDTH = 12, 64
DTYPES = ("float16", "bfloat16")
BACKENDS = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")

# |error| / max |reference|, the reference in float64 on the same inputs.
TOLERANCE = {"float16": 4e-3, "bfloat16": 3e-2}


def shapes() -> Iterator[tuple[int, int, float]]:
    """(sequences, tokens, target): short ones first, whose fused kernel is ours alone."""
    for sequences in (1, 4, 16):
        for tokens in (16, 32, 64, 128, 256, 384):
            yield sequences, tokens, 1.3
    for tokens in (1024, 2048, 4096):
        yield 1, tokens, 1.0


def measure(bench: GpuBench) -> None:
    """Forward at every shape, and forward and backward at some."""
    for sequences, tokens, target in shapes():
        for dtype in DTYPES:
            title = f"{sequences} x {tokens} tokens, {HEADS} heads of {WIDTH}"
            if bench.wants("attention with importance", title, dtype):
                _forward(bench, sequences, tokens, dtype, title, target)
    for sequences, tokens in ((32, 128), (8, 512), (2, 2048)):
        title = f"{sequences} x {tokens} tokens, {HEADS} heads of {WIDTH}"
        if bench.wants("attention, forward and backward", title, "bfloat16"):
            _backward(bench, sequences, tokens, title)


def _inputs(sequences: int, tokens: int, dtype: str, count: int) -> list[Any]:
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (sequences, tokens, HEADS, WIDTH)
    return [
        torch.randn(shape, generator=generator, device="cuda").to(getattr(torch, dtype))
        for _ in range(count)
    ]


def _reference(q: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
    """Output, token and head importance in float64."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    p = (q @ k.transpose(-1, -2) / WIDTH**0.5).softmax(-1)
    out = (p @ v).transpose(1, 2)
    return out, p.sum((1, 2)), out.abs().sum((1, 3))


def _heads_first(x: Any) -> Any:
    return x.transpose(1, 2).contiguous()


def _forward(
    bench: GpuBench, sequences: int, tokens: int, dtype: str, title: str, target: float
) -> None:
    q, k, v = _inputs(sequences, tokens, dtype, 3)
    want = _reference(q, k, v)

    def ours() -> tuple[Any, ...]:
        found = sp.attention(q, k, v, return_importance=True)
        return found.out, found.token_importance, found.head_importance

    case = Case(
        "attention with importance",
        title,
        dtype,
        run=ours,
        expected=want,
        tolerance=TOLERANCE[dtype],
        target=Target(target, dtype),
        flop=4.0 * sequences * HEADS * tokens * tokens * WIDTH,
    )
    tensors = [_heads_first(x) for x in (q, k, v)]
    bench.compare(case, [_peer(name, tensors, want[0], dtype) for name in BACKENDS])


def _peer(name: str, tensors: list[Any], want: Any, dtype: str) -> Peer:
    def run() -> Any:
        with sdpa_kernel(getattr(SDPBackend, name)):
            return torch.nn.functional.scaled_dot_product_attention(*tensors)

    title = f"torch SDPA {name.lower()}"
    return Peer(title, dtype, run, want, TOLERANCE[dtype], lambda x: x.transpose(1, 2))


def _backward(bench: GpuBench, sequences: int, tokens: int, title: str) -> None:
    """No target. Both sides make the output, then three gradients."""
    dtype = "bfloat16"
    q, k, v, grad = _inputs(sequences, tokens, dtype, 4)
    wide = [x.double().transpose(1, 2).requires_grad_() for x in (q, k, v)]
    exact = ((wide[0] @ wide[1].transpose(-1, -2)) / WIDTH**0.5).softmax(-1) @ wide[2]
    want = [
        x.transpose(1, 2) for x in torch.autograd.grad(exact, wide, grad.double().transpose(1, 2))
    ]

    def ours() -> tuple[Any, ...]:
        done = sp.attention(q, k, v, return_lse=True)
        return tuple(sp.attention_backward(grad, q, k, v, done.out, done.lse)[:3])

    case = Case(
        "attention, forward and backward",
        title,
        dtype,
        run=ours,
        expected=want,
        tolerance=TOLERANCE[dtype],
        flop=14.0 * sequences * HEADS * tokens * tokens * WIDTH,
    )
    leaves = [_heads_first(x).requires_grad_() for x in (q, k, v)]
    upstream = _heads_first(grad)
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def peer(name: str) -> Peer:
        backend = getattr(SDPBackend, name)

        def run() -> Any:
            with sdpa_kernel(backend):
                return torch.autograd.grad(sdpa(*leaves), leaves, upstream)

        title = f"torch SDPA {name.lower()}"
        return Peer(title, dtype, run, want, TOLERANCE[dtype], _tokens_first)

    bench.compare(case, [peer(name) for name in BACKENDS[:3]])


def _tokens_first(found: Any) -> list[Any]:
    return [x.transpose(1, 2) for x in found]
