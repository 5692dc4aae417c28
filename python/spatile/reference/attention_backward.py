"""The gradients of attention, from the probabilities written out in full."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .attention import Float, Window, probabilities, sequences
from .philox import dropout_keep


class AttentionGrads(NamedTuple):
    """Gradients of a loss with respect to attention's inputs; ``bias`` is None where not asked."""

    q: Float
    k: Float
    v: Float
    bias: Float | None


def _sum_to_shape(x: Float, shape: tuple[int, ...]) -> Float:
    """``x`` summed over the axes along which an array of ``shape`` was broadcast to it."""
    axes = tuple(i for i, n in enumerate(shape) if n == 1 and x.shape[i] != 1)
    total: Float = x.sum(axis=axes, keepdims=True)
    return total


def _sum_shared(x: Float, kv_heads: int) -> Float:
    """A kv head's gradient (kv heads, sk, d): the sum over the query heads that share it."""
    total: Float = x.reshape(kv_heads, x.shape[0] // kv_heads, *x.shape[1:]).sum(axis=1)
    return total


def attention_backward(
    grad: ArrayLike,
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    out: ArrayLike,
    lse: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    causal: bool = False,
    window: Window | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
    offsets: ArrayLike | None = None,
    kv_offsets: ArrayLike | None = None,
    need_bias: bool = False,
) -> AttentionGrads:
    """dq, dk, dv and, with ``need_bias``, dbias in the bias's shape; ``grad`` is the output's.

    With P the probabilities, K the dropout mask over 1 − dropout and G = grad·vᵀ ∘ K:
    dv = (P ∘ K)ᵀ·grad, dS = P ∘ (G − rowsum(G ∘ P)), dq = scale·dS·k, dk = scale·dSᵀ·q.
    ``out`` and ``lse``, which the fast op starts from, are recomputed here and not read.

    >>> x = np.ones((1, 2, 1, 4))
    >>> attention_backward(x, x, x, x, x, np.zeros((1, 1, 2))).v.ravel().tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    grad64, q64, k64, v64 = (np.asarray(x).astype(np.float64) for x in (grad, q, k, v))
    if dropout > 0 and seed is None:
        raise ValueError("attention_backward: seed is None, expected an integer where dropout > 0")
    factor = 1.0 / math.sqrt(q64.shape[-1]) if scale is None else scale
    heads, kv_heads = q64.shape[-2], k64.shape[-2]
    group = heads // kv_heads
    dq, dk, dv = np.zeros_like(q64), np.zeros_like(k64), np.zeros_like(v64)
    bias_shape = None if bias is None else np.shape(bias)
    dscores = np.zeros((q64.shape[0], heads, q64.shape[1], k64.shape[1])) if need_bias else None
    for seq in sequences(
        q64,
        k64,
        mask=mask,
        lengths=lengths,
        bias=bias,
        causal=causal,
        window=window,
        offsets=offsets,
        kv_offsets=kv_offsets,
    ):
        q_seq, k_seq, v_seq = q64[seq.queries], k64[seq.keys], v64[seq.keys]
        p, _ = probabilities(q_seq, k_seq, seq, factor)
        survival = np.ones_like(p)
        if dropout > 0 and seed is not None:
            kept = dropout_keep(*p.shape, dropout=dropout, seed=seed, sequence=seq.number)
            survival = kept / (1.0 - dropout)
        g_heads = grad64[seq.queries].transpose(1, 0, 2)
        v_heads = np.repeat(v_seq, group, axis=1).transpose(1, 0, 2)
        k_heads = np.repeat(k_seq, group, axis=1).transpose(1, 0, 2)
        dp = (g_heads @ v_heads.transpose(0, 2, 1)) * survival
        ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True))
        dq[seq.queries] = factor * (ds @ k_heads).transpose(1, 0, 2)
        dk_heads = factor * ds.transpose(0, 2, 1) @ q_seq.transpose(1, 0, 2)
        dv_heads = (p * survival).transpose(0, 2, 1) @ g_heads
        dk[seq.keys] = _sum_shared(dk_heads, kv_heads).transpose(1, 0, 2)
        dv[seq.keys] = _sum_shared(dv_heads, kv_heads).transpose(1, 0, 2)
        if dscores is not None:
            rows, cols = ds.shape[1:]
            dscores[seq.number, :, :rows, :cols] = ds
    if dscores is None or bias_shape is None:
        return AttentionGrads(dq, dk, dv, None)
    return AttentionGrads(dq, dk, dv, _sum_to_shape(dscores, bias_shape))
