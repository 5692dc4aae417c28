"""Plain implementations in the storage type itself: the yardsticks of the tolerance rule.

Each computes every step in the type of its inputs, as someone who has only PyTorch would.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from spatile.reference.attention import sequences

from .arrays import to_torch


class PlainAttention(NamedTuple):
    out: torch.Tensor
    lse: torch.Tensor
    token_importance: torch.Tensor
    head_importance: torch.Tensor


class PlainGrads(NamedTuple):
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    bias: torch.Tensor | None


_MASKS = ("mask", "lengths", "causal", "window", "offsets", "kv_offsets")


def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    options: dict[str, Any],
) -> PlainAttention:
    rules: dict[str, Any] = dict.fromkeys(_MASKS)
    rules["causal"] = False
    rules.update({name: options[name] for name in _MASKS if name in options})
    heads, group = q.shape[-2], q.shape[-2] // k.shape[-2]
    scale = options.get("scale", 1.0 / math.sqrt(q.shape[-1]))
    batch = q.shape[0] if rules["offsets"] is None else len(rules["offsets"]) - 1
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    lse = torch.full(q.shape[:-1], -torch.inf, dtype=torch.float32)
    tokens = torch.zeros(k.shape[:-2])
    head_sums = torch.zeros(batch, heads)
    shapes = np.empty(q.shape), np.empty(k.shape)
    for seq in sequences(*shapes, bias=None, **rules):
        keys = k[seq.keys].repeat_interleave(group, dim=1).transpose(0, 1)
        values = v[seq.keys].repeat_interleave(group, dim=1).transpose(0, 1)
        scores = (q[seq.queries] * scale).transpose(0, 1) @ keys.transpose(1, 2)
        if bias is not None:
            full = bias.expand(q.shape[0], heads, q.shape[1], k.shape[1])[seq.number]
            scores = scores + full[:, : scores.shape[1], : scores.shape[2]]
        visible = torch.from_numpy(seq.visible.copy())
        scores = scores.masked_fill(~visible, -torch.inf)
        live = visible.any(-1)
        p = torch.where(live[..., None], scores, torch.zeros((), dtype=q.dtype)).softmax(-1)
        p = torch.where(live[..., None], p, torch.zeros((), dtype=q.dtype))
        lse[seq.queries] = scores.detach().logsumexp(-1).float().T
        tokens[seq.keys] = p.detach().sum((0, 1)).float()
        result = (p @ values).transpose(0, 1)
        out[seq.queries] = result
        head_sums[seq.number] = result.detach().abs().sum((0, 2)).float()
    return PlainAttention(out, lse.transpose(-1, -2), tokens, head_sums)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, **options: Any) -> PlainAttention:
    """Every field of ``AttentionResult``, for the arguments of ``sp.attention`` but dropout's."""
    bias = options.pop("bias", None)
    return _attention(
        to_torch(q), to_torch(k), to_torch(v), None if bias is None else to_torch(bias), options
    )


def attention_backward(
    grad: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, **options: Any
) -> PlainGrads:
    """Autograd through :func:`attention`, in the storage type."""
    bias = options.pop("bias", None)
    leaves = [to_torch(x).requires_grad_() for x in (q, k, v)]
    bias_leaf = None if bias is None else to_torch(bias).requires_grad_()
    out = _attention(*leaves, bias_leaf, options).out
    out.backward(to_torch(grad))
    grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
    return PlainGrads(*grads, None if bias_leaf is None else bias_leaf.grad)


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a`` (n, k) times ``b`` (k, m). In float32 the sum runs over k one by one.

    A library's blocked sum has a smaller error than a plain loop, and by its own choice of blocks.
    """
    if a.dtype != torch.float32:
        return a @ b
    total = torch.zeros(a.shape[0], b.shape[1])
    for column, row in zip(a.T, b, strict=True):
        total += column[:, None] * row
    return total


def activate(y: torch.Tensor, activation: str | None) -> torch.Tensor:
    if activation == "gelu":
        return torch.nn.functional.gelu(y)
    if activation == "gelu_tanh":
        return torch.nn.functional.gelu(y, approximate="tanh")
    if activation == "relu":
        return torch.relu(y)
    if activation == "tanh":
        return torch.tanh(y)
    return y


def linear(
    x: np.ndarray,
    w: np.ndarray,
    *,
    bias: np.ndarray | None = None,
    activation: str | None = None,
    residual: np.ndarray | None = None,
) -> torch.Tensor:
    y = product(to_torch(x), to_torch(w).T)
    if bias is not None:
        y = y + to_torch(bias)
    y = activate(y, activation)
    return y if residual is None else y + to_torch(residual)
