"""`attention` and `attention_backward`: fused, any length, no s×s array anywhere."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from spatile import _core
from spatile.ops.arrays import (
    Array,
    check_out,
    empty,
    kind_of,
    shape_of,
    to_numpy,
    whole_seed,
)

__all__ = ["AttentionGrads", "AttentionResult", "attention", "attention_backward"]

Window = tuple["int | None", "int | None"]


class AttentionResult(NamedTuple):
    """What :func:`attention` gives when more than the output is asked for; None where not asked."""

    out: Array
    lse: Array | None
    token_importance: Array | None
    head_importance: Array | None


class AttentionGrads(NamedTuple):
    """Gradients with respect to attention's inputs; ``bias`` is None where not asked for."""

    q: Array
    k: Array
    v: Array
    bias: Array | None


def _integers(op: str, arg: str, x: Array | None) -> np.ndarray[Any, Any] | None:
    """Any integer array, or a list, as a contiguous int64 copy.

    A copy, because the core checks these and then reads them again without the GIL.
    """
    if x is None:
        return None
    if isinstance(x, (list, tuple)):
        array = np.asarray(x) if len(x) else np.zeros(0, np.int64)
    else:
        array = to_numpy(op, arg, x)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{op}: {arg}.dtype is {array.dtype}, expected an integer type")
    return array.astype(np.int64, order="C", copy=True)


def _real(op: str, arg: str, x: object) -> float:
    if not isinstance(x, Real):
        raise TypeError(f"{op}: {arg} is a {type(x).__name__}, expected a number")
    return float(x)


def _scale(op: str, scale: float | None) -> float:
    """NaN stands for 1/√d in the core."""
    if scale is None:
        return math.nan
    value = _real(op, "scale", scale)
    if not math.isfinite(value):
        raise ValueError(f"{op}: scale is {value}, expected a finite number")
    return value


def _window(op: str, window: Window | None) -> tuple[int, int]:
    """(left, right) with −1 for unbounded."""
    if window is None:
        return -1, -1
    if not isinstance(window, (tuple, list)):
        raise TypeError(
            f"{op}: window is a {type(window).__name__}, expected (left, right) or None"
        )
    if len(window) != 2:
        raise ValueError(f"{op}: window has {len(window)} entries, expected (left, right)")
    sides = []
    for side in window:
        if side is None:
            sides.append(-1)
            continue
        try:
            keys = operator.index(side)
        except TypeError:
            raise TypeError(
                f"{op}: window has a {type(side).__name__}, expected integers or None"
            ) from None
        if keys < 0:
            raise ValueError(f"{op}: window has {keys}, expected numbers of keys, at least 0")
        sides.append(min(keys, 2**60))
    return sides[0], sides[1]


def _dropout(op: str, dropout: float, seed: int | None) -> tuple[float, int]:
    rate = _real(op, "dropout", dropout)
    if seed is None:
        if rate > 0:
            raise ValueError(f"{op}: seed is None, expected an integer where dropout > 0")
        return rate, 0
    return rate, whole_seed(op, seed)


def _check_arrays(op: str, packed: bool, **arrays: Array | None) -> None:
    """Each is an array; q, k and v have the dimensions of their form."""
    for name, x in arrays.items():
        if x is None and name in ("mask", "bias"):
            continue
        kind_of(op, name, x)
        expected = 3 if packed else 4
        if name in ("q", "k", "v") and len(shape_of(x)) != expected:
            form = "(t, h, d) beside offsets" if packed else "(b, s, h, d) without offsets"
            raise ValueError(
                f"{op}: {name} has {len(shape_of(x))} dimensions, expected {expected}, {form}"
            )


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    lengths: Array | None = None,
    bias: Array | None = None,
    causal: bool = False,
    window: Window | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
    offsets: Array | None = None,
    kv_offsets: Array | None = None,
    return_lse: bool = False,
    return_importance: bool = False,
    out: Array | None = None,
) -> Array | AttentionResult:
    """``softmax(scale·q·kᵀ + bias)·v`` per head, over the pairs that may attend.

    Parameters
    ----------
    q, k, v : (b, sq, h, d), (b, sk, hk, d), (b, sk, hk, dv) float32, float16 or bfloat16
        Sums are float32. Where all three are bfloat16 and the processor multiplies it,
        probabilities are rounded to it before they meet v, as PyTorch does.
        Or packed: (t, h, d) with ``offsets``. hk divides h: query head i uses key head i // (h/hk).
    mask : bool, (b, h, sq, sk), each of the four sizes that or 1, optional
        True = attend. Numbers in v that are hidden may be multiplied by 0, so they must be finite;
        only ``lengths`` promises that they are not looked at.
    lengths : (b,) integers, optional
        Right padding, where sq = sk: rows from there on give zeros and count nowhere, whatever
        they hold.
    bias : float, (b, h, sq, sk), each of the four sizes that or 1, optional
        Added to the scores; −inf hides the pair.
    causal : key j is visible to query i iff j ≤ i + (sk − sq).
    window : (left, right) keys around i + (sk − sq); None = unbounded on that side.
    scale : default 1/√d, applied to q before the product (in bfloat16 to the product, which must
        itself stay within float32's range).
    dropout, seed : drop probabilities with this chance, in [0, 1), as Philox4x32-10 decides from
        the seed (:func:`spatile.reference.dropout_keep`); the kept are scaled by 1/(1 − dropout).
    offsets, kv_offsets : (b + 1,) integers
        Where packed sequences start; kv_offsets where those of the keys differ.
    return_lse, return_importance : ask for the rest of :class:`AttentionResult`.
    out : (b, sq, h, dv), optional, written and returned

    Returns
    -------
    (b, sq, h, dv), or packed (t, h, dv), of q's kind and dtype; zeros where a row has nothing to
    attend. With return_lse or return_importance an :class:`AttentionResult`, all float32 besides
    ``out``: lse (b, h, sq) or (h, t), natural log, −inf for an empty row; token importance (b, sk)
    or (t,), probabilities (before dropout) summed over heads and valid queries; head importance
    (b, h), \\|out\\| summed over valid queries and features.

    Raises
    ------
    ValueError (shapes, ranges), TypeError (dtypes), NotImplementedError (mask or bias beside
    offsets), MemoryError.

    Notes
    -----
    E.T.'s on-the-fly attention (Chen et al., SC 2021), with the online softmax of Milakov and
    Gimelshein (2018) for long rows.

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> v = np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1)
    >>> q = np.zeros((1, 3, 1, 4), np.float32)
    >>> sp.attention(q, q, v, causal=True).ravel().tolist()
    [0.0, 0.5, 1.0]
    """
    op = "attention"
    packed = offsets is not None
    _check_arrays(op, packed, q=q, k=k, v=v, mask=mask, bias=bias)
    shape = (*shape_of(q)[:-1], shape_of(v)[-1])
    inputs = {"q": q, "k": k, "v": v, "mask": mask, "bias": bias}
    result = empty(q, shape) if out is None else check_out(op, out, q, shape, inputs)
    starts = _integers(op, "offsets", offsets)
    batch = shape[0] if starts is None else max(0, starts.size - 1)
    lse = tokens = heads = None
    if return_lse:
        lse = empty(q, (*shape[:-3], shape[-2], shape[-3]), "float32")
    if return_importance:
        tokens = empty(q, shape_of(k)[:-2], "float32")
        heads = empty(q, (batch, shape[-2]), "float32")
    _core.attention(
        q, k, v, result, mask, bias, _integers(op, "lengths", lengths), starts,
        _integers(op, "kv_offsets", kv_offsets), lse, tokens, heads, causal, *_window(op, window),
        _scale(op, scale), *_dropout(op, dropout, seed),
    )  # fmt: skip
    if return_lse or return_importance:
        return AttentionResult(result, lse, tokens, heads)
    return result


def attention_backward(
    grad: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    lse: Array,
    *,
    mask: Array | None = None,
    lengths: Array | None = None,
    bias: Array | None = None,
    causal: bool = False,
    window: Window | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
    offsets: Array | None = None,
    kv_offsets: Array | None = None,
    need_bias: bool = False,
) -> AttentionGrads:
    """Gradients of :func:`attention` given ``grad`` = ∂loss/∂out.

    The probabilities are computed again from ``lse``: nothing of s×s is stored, but the bias's own
    gradient where ``need_bias`` asks for it.

    Parameters
    ----------
    grad, out : like attention's output; lse : (b, h, sq) or (h, t) float32, as returned
    q, k, v and the options : as they were given to :func:`attention`

    Returns
    -------
    AttentionGrads: ``q``, ``k``, ``v`` like their arrays, ``bias`` in the bias's own shape.

    Raises
    ------
    ValueError, TypeError, NotImplementedError, MemoryError, as :func:`attention`.

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> x = np.ones((1, 2, 1, 4), np.float32)
    >>> forward = sp.attention(x, x, x, return_lse=True)
    >>> sp.attention_backward(x, x, x, x, forward.out, forward.lse).v[0, :, 0, 0].tolist()
    [1.0, 1.0]
    """
    op = "attention_backward"
    _check_arrays(
        op, offsets is not None, q=q, k=k, v=v, grad=grad, out=out, lse=lse, mask=mask, bias=bias
    )
    if need_bias and bias is None:
        raise ValueError(f"{op}: need_bias is True without a bias, expected a bias")
    dq, dk, dv = (empty(x, shape_of(x)) for x in (q, k, v))
    dbias = empty(bias, shape_of(bias)) if need_bias else None
    _core.attention_backward(
        q, k, v, out, mask, bias, _integers(op, "lengths", lengths),
        _integers(op, "offsets", offsets), _integers(op, "kv_offsets", kv_offsets), lse, grad, dq,
        dk, dv, dbias, causal, *_window(op, window), _scale(op, scale),
        *_dropout(op, dropout, seed),
    )  # fmt: skip
    return AttentionGrads(dq, dk, dv, dbias)
