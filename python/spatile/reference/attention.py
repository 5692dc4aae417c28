"""Attention with every mask built densely and every s×s matrix in plain sight."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .philox import dropout_keep

Float = NDArray[np.float64]
Window = tuple["int | None", "int | None"]


class AttentionResult(NamedTuple):
    """What :func:`attention` gives when more than the output is asked for; None where not asked."""

    out: Float
    lse: Float | None
    token_importance: Float | None
    head_importance: Float | None


class Sequence(NamedTuple):
    """One sequence of a call: where its rows lie, and what it may attend to.

    ``queries`` and ``keys`` index the leading axes of q and of k and v, ``number`` is its place
    in the batch, ``visible`` is bool (heads, sq, sk), ``added`` the bias (heads, sq, sk).
    """

    number: int
    queries: Any
    keys: Any
    visible: NDArray[np.bool_]
    added: Float


def visible_pairs(
    sq: int, sk: int, *, causal: bool = False, window: Window | None = None
) -> NDArray[np.bool_]:
    """Which key each query sees: bool (sq, sk). Both rules are aligned to the bottom right.

    >>> visible_pairs(2, 3, causal=True).astype(int).tolist()
    [[1, 1, 0], [1, 1, 1]]
    """
    centre = np.arange(sq)[:, None] + (sk - sq)
    key = np.arange(sk)[None, :]
    visible = np.ones((sq, sk), np.bool_)
    if causal:
        visible &= key <= centre
    if window is not None:
        left, right = window
        if left is not None:
            visible &= key >= centre - left
        if right is not None:
            visible &= key <= centre + right
    return visible


def sequences(
    q: Float,
    k: Float,
    *,
    mask: ArrayLike | None,
    lengths: ArrayLike | None,
    bias: ArrayLike | None,
    causal: bool,
    window: Window | None,
    offsets: ArrayLike | None,
    kv_offsets: ArrayLike | None,
) -> Iterator[Sequence]:
    """The sequences of a batched or packed call, one by one.

    Padding is cut off rather than masked, so what lies in it, NaN included, counts nowhere.
    """
    heads = q.shape[-2]
    if offsets is not None:
        if mask is not None or bias is not None:
            raise NotImplementedError("attention: mask and bias need batched arrays, not offsets")
        starts = np.asarray(offsets).tolist()
        kv_starts = starts if kv_offsets is None else np.asarray(kv_offsets).tolist()
        for index in range(len(starts) - 1):
            queries = slice(starts[index], starts[index + 1])
            keys = slice(kv_starts[index], kv_starts[index + 1])
            sq, sk = queries.stop - queries.start, keys.stop - keys.start
            seen = np.broadcast_to(
                visible_pairs(sq, sk, causal=causal, window=window), (heads, sq, sk)
            )
            yield Sequence(index, queries, keys, seen, np.zeros((heads, sq, sk)))
        return
    batch, sq, sk = q.shape[0], q.shape[1], k.shape[1]
    full = (batch, heads, sq, sk)
    allowed = np.broadcast_to(True if mask is None else np.asarray(mask, np.bool_), full)
    added = np.broadcast_to(0.0 if bias is None else np.asarray(bias, np.float64), full)
    for index in range(batch):
        rows, cols = sq, sk
        if lengths is not None:
            rows = cols = int(np.asarray(lengths)[index])
        seen = visible_pairs(sq, sk, causal=causal, window=window)[:rows, :cols]
        yield Sequence(
            index,
            (index, slice(0, rows)),
            (index, slice(0, cols)),
            allowed[index, :, :rows, :cols] & seen,
            added[index, :, :rows, :cols],
        )


def probabilities(q: Float, k: Float, seq: Sequence, scale: float) -> tuple[Float, Float]:
    """P (heads, sq, sk) and the natural log of its denominators (heads, sq) of one sequence.

    ``q`` is (sq, heads, d), ``k`` (sk, kv heads, d). A row with nothing to attend is all zeros, its
    log −inf; such are also the rows whose every score is −inf.
    """
    group = q.shape[1] // k.shape[1]
    k_per_head = np.repeat(k, group, axis=1)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        scores = (q * scale).transpose(1, 0, 2) @ k_per_head.transpose(1, 2, 0) + seq.added
        scores = np.where(seq.visible, scores, -np.inf)
        top = np.max(scores, axis=-1, initial=-np.inf, keepdims=True)
        nothing = top == -np.inf
        # -inf - (-inf) is NaN; an empty row is to be zero instead.
        weights = np.exp(scores - np.where(nothing, 0.0, top))
        total = weights.sum(axis=-1, keepdims=True)
        p = np.where(nothing, 0.0, weights / np.where(nothing, 1.0, total))
        lse = np.where(nothing, -np.inf, top + np.log(total))[..., 0]
    return p, lse


def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
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
    return_lse: bool = False,
    return_importance: bool = False,
    out: Float | None = None,
) -> Float | AttentionResult:
    """softmax(scale·q·kᵀ + bias)·v per head, over the visible pairs.

    q (b, sq, h, d), k (b, sk, hk, d), v (b, sk, hk, dv), or packed (t, h, d) with ``offsets``
    (b+1). Returns (b, sq, h, dv), or (tq, h, dv); an :class:`AttentionResult` when more is asked
    for: lse (b, h, sq) or (h, tq), token importance (b, sk) or (tk,), head importance (b, h).
    Raises NotImplementedError for mask or bias with packed arrays, ValueError for dropout without
    seed.

    >>> v = np.arange(3.0).reshape(1, 3, 1, 1)
    >>> attention(np.zeros((1, 3, 1, 4)), np.zeros((1, 3, 1, 4)), v, causal=True).ravel().tolist()
    [0.0, 0.5, 1.0]
    """
    q64, k64, v64 = (np.asarray(x).astype(np.float64) for x in (q, k, v))
    if dropout > 0 and seed is None:
        raise ValueError("attention: seed is None, expected an integer where dropout > 0")
    factor = 1.0 / math.sqrt(q64.shape[-1]) if scale is None else scale
    heads = q64.shape[-2]
    batch = q64.shape[0] if offsets is None else len(np.asarray(offsets)) - 1
    result = np.zeros(q64.shape[:-1] + v64.shape[-1:])
    lse = np.full(q64.shape[:-1], -np.inf)
    tokens = np.zeros(k64.shape[:-2])
    head_sums = np.zeros((batch, heads))
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
        p, log_total = probabilities(q64[seq.queries], k64[seq.keys], seq, factor)
        lse[seq.queries] = log_total.T
        tokens[seq.keys] = p.sum(axis=(0, 1))
        if dropout > 0 and seed is not None:
            p = p * dropout_keep(*p.shape, dropout=dropout, seed=seed, sequence=seq.number)
            p = p / (1.0 - dropout)
        v_per_head = np.repeat(v64[seq.keys], heads // v64.shape[-2], axis=1)
        with np.errstate(invalid="ignore"):
            result[seq.queries] = (p @ v_per_head.transpose(1, 0, 2)).transpose(1, 0, 2)
        head_sums[seq.number] = np.abs(result[seq.queries]).sum(axis=(0, 2))
    if out is not None:
        out[...] = result
        result = out
    if not (return_lse or return_importance):
        return result
    return AttentionResult(
        result,
        np.moveaxis(lse, -1, -2) if return_lse else None,
        tokens if return_importance else None,
        head_sums if return_importance else None,
    )
