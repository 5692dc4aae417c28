"""Attention that says how important its tokens and heads are, for heads that some inputs lost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from spatile.torch.functional import attention

__all__ = ["LayerAttention", "attend", "live_values"]

_FUSED = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class LayerAttention:
    """``out`` (b, s, heads · width) before W_O; importance (b, s) and (b, heads), float."""

    out: torch.Tensor
    tokens: torch.Tensor | None
    heads: torch.Tensor | None


def live_values(
    value: nn.Linear, output: nn.Linear, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(heads, ``width``) bool: value rows that have weights, and those that W_O reads besides."""
    computed = value.weight.any(dim=1).view(-1, width)
    return computed, computed & output.weight.any(dim=0).view(-1, width)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    value: nn.Linear,
    output: nn.Linear,
    lengths: torch.Tensor,
    kept: torch.Tensor,
    dropout: float,
    importance: bool,
) -> LayerAttention:
    """Attention over q, k and v (b, s, h, d) of ``value``'s and ``output``'s layer.

    ``lengths`` (b,) valid tokens, on the CPU; ``kept`` (b, h) bool, beside q, the heads of each
    input: others attend to nothing and count for nothing. A value row without weights gives its
    bias whatever the probabilities are, also where its head is dropped, and is no part of a head,
    like one that W_O does not read. A head without other rows counts for no token. So does the
    packed model.
    """
    heads, width = q.shape[2:]
    computed, live = live_values(value, output, width)
    attends = kept & live.any(dim=1)
    # One row of the mask serves all queries and keys.
    mask = None if bool(attends.all()) else attends[:, :, None, None]
    tokens = magnitude = None
    if q.device.type not in ("cpu", "cuda") or q.dtype not in _FUSED:
        out, tokens = _plain(q, k, v, mask, lengths.to(q.device), dropout)
    elif importance:
        out, _, tokens, magnitude = attention(
            q, k, v, mask=mask, lengths=lengths, dropout=dropout, return_importance=True
        )
    else:
        out = attention(q, k, v, mask=mask, lengths=lengths, dropout=dropout)
    if importance and (magnitude is None or not bool(live.all())):
        magnitude = (out.detach().abs() * live).sum(dim=(1, 3), dtype=torch.float32)
    if mask is not None and value.bias is not None and not bool(computed.all()):
        constant = (value.bias.view(heads, width) * ~computed).to(out.dtype)
        out = out + torch.where(attends[:, None, :, None], torch.zeros_like(constant), constant)
    return LayerAttention(
        out.flatten(2), tokens if importance else None, magnitude if importance else None
    )


def _plain(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    lengths: torch.Tensor,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output and the tokens' importance, in PyTorch's operations: any device, any dtype."""
    valid = torch.arange(q.shape[1], device=q.device) < lengths[:, None]
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~valid[:, None, None, :], torch.finfo(scores.dtype).min)
    counted = valid[:, None, :, None] if mask is None else valid[:, None, :, None] & mask
    p = scores.softmax(dim=-1) * counted
    tokens = p.detach().sum(dim=(1, 2), dtype=torch.promote_types(p.dtype, torch.float32))
    p = torch.nn.functional.dropout(p, dropout)
    return torch.einsum("bhqk,bkhd->bqhd", p, v), tokens
