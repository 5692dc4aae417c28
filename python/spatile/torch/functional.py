"""The ops as differentiable PyTorch functions, forward and backward in the C core.

Tensors are on the CPU or on one CUDA device, where the op runs on PyTorch's current stream.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from spatile import _core, ops
from spatile.ops.attention import AttentionResult
from spatile.ops.sparse_matrix import SparseMatrix

__all__ = ["LinearProduct", "attention", "drawn_seed", "dropout", "linear"]

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
        return_importance: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        tensors = [t.detach() for t in (q, k, v)]
        added = None if bias is None else bias.detach()
        result = ops.attention(
            *tensors, bias=added, return_lse=True, return_importance=return_importance, **options
        )
        ctx.save_for_backward(q, k, v, bias, result.out, result.lse)
        ctx.options = options
        if return_importance:
            ctx.mark_non_differentiable(result.token_importance, result.head_importance)
        return result.out, result.token_importance, result.head_importance

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(
        ctx: Any, grad: torch.Tensor, *of_importance: Any
    ) -> tuple[torch.Tensor | None, ...]:
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
        return grads.q, grads.k, grads.v, grads.bias, None, None


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
    return_importance: bool = False,
) -> Any:
    """:func:`spatile.attention` with gradients for q, k, v and ``bias``; arguments as there.

    q (b, sq, h, d), k (b, sk, hk, d), v (b, sk, hk, dv) or packed (t, h, d) with ``offsets``;
    float32, float16 or bfloat16; strided tensors are not copied. On a GPU ``mask`` and ``bias`` are
    there too, ``lengths`` and offsets on the CPU. Scores are never stored: the
    backward pass computes them again, and draws the same dropout from ``seed``. With ``dropout``
    and no ``seed``, one is drawn from PyTorch's default generator (the CPU's), so that
    ``torch.manual_seed`` and activation checkpointing repeat it. Not differentiable twice.

    Returns a tensor like q with v's width; with ``return_importance`` an ``AttentionResult``, of
    which ``token_importance`` and ``head_importance`` come from the same pass and have no gradient
    (and ``lse`` is None).

    >>> q = torch.randn(1, 4, 2, 8, requires_grad=True)
    >>> attention(q, q, q, causal=True).sum().backward()
    >>> q.grad.shape
    torch.Size([1, 4, 2, 8])
    >>> importance = attention(q, q, q, return_importance=True).token_importance
    >>> float(importance.sum().round())  # a probability of 1 from 2 heads of 4 queries each
    8.0
    """
    if dropout > 0.0 and seed is None:
        seed = drawn_seed()
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
    out, tokens, heads = _Attention.apply(q, k, v, bias, options, return_importance)
    return AttentionResult(out, None, tokens, heads) if return_importance else out


class LinearProduct(Function):  # type: ignore[misc]
    """x·Wᵀ + bias; with a structure, of what it keeps of W, whose gradient is zero elsewhere."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        w: torch.Tensor,
        bias: torch.Tensor | None,
        structure: SparseMatrix | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, w)
        ctx.structure = structure
        ctx.bias_dtype = w.dtype if bias is None else bias.dtype
        out = x.new_empty((*x.shape[:-1], w.shape[0]))
        added = None if bias is None else _memory("linear", "bias", bias)
        _core.linear(
            _rows("linear", "x", x), _weight(w, structure), _rows("linear", "out", out), added,
            None, 0, _in_bf16(x),
        )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        op = "linear_backward"
        x, w = ctx.saved_tensors
        need_x, need_w, need_bias, _ = ctx.needs_input_grad
        dx = torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else None
        dw = torch.empty_like(w, memory_format=torch.contiguous_format) if need_w else None
        db = w.new_empty(w.shape[0], dtype=ctx.bias_dtype) if need_bias else None
        _core.linear_backward(
            _rows(op, "grad", grad),
            _rows(op, "x", x),
            _weight(w, ctx.structure),
            None if dx is None else _rows(op, "dx", dx),
            None if dw is None else _memory(op, "dw", dw),
            None if db is None else _memory(op, "dbias", db),
            _in_bf16(x),
        )
        return dx, dw, db, None


def _memory(op: str, name: str, t: torch.Tensor) -> Any:
    """What the core reads the tensor through; NumPy's view takes a tenth of DLPack's time."""
    t = t.detach()
    if t.device.type == "cuda":
        return t
    if t.device.type != "cpu":
        raise NotImplementedError(
            f"{op}: {name} is on {t.device}, expected the CPU or a CUDA device"
        )
    return t if t.dtype == torch.bfloat16 else t.numpy()


def _rows(op: str, name: str, t: torch.Tensor) -> Any:
    return _memory(op, name, t.reshape(math.prod(t.shape[:-1]), t.shape[-1]))


def _in_bf16(x: torch.Tensor) -> bool:
    # As PyTorch does it: what comes in as bfloat16 is multiplied as such, whatever the weights are.
    native = x.device.type == "cuda" or _core.bf16_is_native()
    return x.dtype == torch.bfloat16 and native


def _weight(w: torch.Tensor, structure: SparseMatrix | None) -> Any:
    # The core brings the structure's index to w's device at the first product there, and keeps it.
    memory = _memory("linear", "w", w)
    return memory if structure is None else (memory, structure._capsule)


def linear(x: torch.Tensor, w: torch.Tensor, *, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x·Wᵀ + bias through :func:`spatile.linear`, with gradients for all three.

    x (…, in), w (out, in), bias (out,): float32, float16 or bfloat16, on the CPU or on one CUDA
    device, as the output (…, out) of x's dtype is. Raises ValueError for shapes and for tensors on
    different devices, TypeError for other dtypes.

    >>> x, w = torch.randn(2, 3), torch.randn(4, 3, requires_grad=True)
    >>> linear(x, w).sum().backward()
    >>> torch.allclose(w.grad, x.sum(0).expand(4, 3), atol=1e-6)
    True
    """
    out: torch.Tensor = LinearProduct.apply(x, w, bias, None)
    return out


class _Dropout(Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, p: float, seed: int) -> torch.Tensor:
        ctx.p, ctx.seed = p, seed
        return _drop(x, p, seed)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _drop(grad, ctx.p, ctx.seed), None, None


def _drop(x: torch.Tensor, p: float, seed: int) -> torch.Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _core.dropout(_memory("dropout", "x", x), p, seed, _memory("dropout", "out", out))
    return out


def dropout(x: torch.Tensor, *, p: float, seed: int | None = None) -> torch.Tensor:
    """:func:`spatile.dropout` with a gradient; x of any shape, float32, float16 or bfloat16.

    Without ``seed`` one is drawn from PyTorch's default generator (the CPU's), so that
    ``torch.manual_seed`` and activation checkpointing repeat it. The mask is drawn again for the
    gradient, not kept.

    >>> x = torch.ones(100, requires_grad=True)
    >>> y = dropout(x, p=0.5, seed=1)
    >>> y.sum().backward()
    >>> torch.equal(x.grad, y)
    True
    """
    out: torch.Tensor = _Dropout.apply(x, p, drawn_seed() if seed is None else seed)
    return out


def drawn_seed() -> int:
    """A seed from the CPU's default generator, which no GPU has to be waited for."""
    return int(torch.randint(0, 2**63 - 1, (), device="cpu"))
