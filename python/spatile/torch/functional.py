"""The ops as differentiable PyTorch functions, forward and backward in the C core."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from spatile import ops

__all__ = ["attention", "linear"]

Window = tuple[int | None, int | None]


class _Attention(Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor | None,
        options: dict[str, Any],
    ) -> torch.Tensor:
        tensors = [t.detach() for t in (q, k, v)]
        added = None if bias is None else bias.detach()
        result = ops.attention(*tensors, bias=added, return_lse=True, **options)
        ctx.save_for_backward(q, k, v, bias, result.out, result.lse)
        ctx.options = options
        out: torch.Tensor = result.out
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, bias, out, lse = ctx.saved_tensors
        grads = ops.attention_backward(
            grad.detach(),
            q.detach(),
            k.detach(),
            v.detach(),
            out.detach(),
            lse.detach(),
            bias=None if bias is None else bias.detach(),
            need_bias=ctx.needs_input_grad[3],
            **ctx.options,
        )
        return grads.q, grads.k, grads.v, grads.bias, None


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    causal: bool = False,
    window: Window | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
    offsets: torch.Tensor | None = None,
    kv_offsets: torch.Tensor | None = None,
) -> torch.Tensor:
    """:func:`spatile.attention` with gradients for q, k, v and ``bias``; arguments as there.

    q (b, sq, h, d), k (b, sk, hk, d), v (b, sk, hk, dv) or packed (t, h, d) with ``offsets``;
    float32, float16 or bfloat16; strided tensors are not copied. Scores are never stored: the
    backward pass computes them again, and draws the same dropout from ``seed``. With ``dropout``
    and no ``seed``, one is drawn from PyTorch's default generator, so that
    ``torch.manual_seed`` and activation checkpointing repeat it. Not differentiable twice.

    >>> q = torch.randn(1, 4, 2, 8, requires_grad=True)
    >>> attention(q, q, q, causal=True).sum().backward()
    >>> q.grad.shape
    torch.Size([1, 4, 2, 8])
    """
    if dropout > 0.0 and seed is None:
        seed = int(torch.randint(0, 2**63 - 1, ()))
    options = {
        "mask": mask,
        "lengths": lengths,
        "causal": causal,
        "window": window,
        "scale": scale,
        "dropout": dropout,
        "seed": seed,
        "offsets": offsets,
        "kv_offsets": kv_offsets,
    }
    out: torch.Tensor = _Attention.apply(q, k, v, bias, options)
    return out


class _Linear(Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, w)
        out: torch.Tensor = ops.linear(
            x.detach(), w.detach(), bias=None if bias is None else bias.detach()
        )
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, w = ctx.saved_tensors
        need = tuple(
            name
            for name, wanted in zip(("x", "w", "bias"), ctx.needs_input_grad, strict=True)
            if wanted
        )
        grads = ops.linear_backward(grad.detach(), x.detach(), w.detach(), need=need)
        return grads.x, grads.w, grads.bias


def linear(x: torch.Tensor, w: torch.Tensor, *, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x·Wᵀ + bias through :func:`spatile.linear`, with gradients for all three.

    x (…, in), w (out, in), bias (out,), of one dtype: float32, float16 or bfloat16.

    >>> x, w = torch.randn(2, 3), torch.randn(4, 3, requires_grad=True)
    >>> linear(x, w).sum().backward()
    >>> torch.allclose(w.grad, x.sum(0).expand(4, 3), atol=1e-6)
    True
    """
    out: torch.Tensor = _Linear.apply(x, w, bias)
    return out
