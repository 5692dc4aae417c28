"""`topk`: the k largest, in their original order."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import numpy as np

from spatile import _core
from spatile.ops.arrays import Array, empty, kind_of, shape_of, to_numpy

__all__ = ["TopK", "topk"]

_INT64 = np.dtype(np.int64)


class TopK(NamedTuple):
    """``values`` of the scores' dtype and ``indices`` int64, in the order in which they stood."""

    values: Array
    indices: Array


def whole_numbers(op: str, arg: str, x: Any) -> np.ndarray[Any, Any]:
    """A list or an array as a contiguous int64 copy, which no other thread can change."""
    values = to_numpy(op, arg, x) if hasattr(x, "shape") else np.asarray(x)
    if values.ndim > 1 or (values.size and values.dtype.kind not in "iu"):
        raise TypeError(
            f"{op}: {arg} is {values.ndim}-D {values.dtype}, expected at most 1-D integers"
        )
    return values.astype(np.int64, order="C", copy=True)


def _packed(scores: Array, k: Any, offsets: Any) -> TopK:
    ends = whole_numbers("topk", "offsets", offsets)
    if ends.ndim != 1 or len(ends) < 1:
        raise ValueError(
            f"topk: offsets.shape is {ends.shape}, expected one dimension, of the first and the "
            f"last token at least"
        )
    counts = whole_numbers("topk", "k", k)
    n = len(ends) - 1
    if counts.size not in (1, n):
        raise ValueError(f"topk: k has {counts.size} entries, expected 1 or {n}")
    counts = np.ascontiguousarray(np.broadcast_to(counts, (n,)))
    # What is wrong in k is the core's to say; it must not size an allocation before that.
    total = min(int(np.maximum(counts, 0).sum(dtype=np.float64)), int(np.prod(shape_of(scores))))
    result = TopK(empty(scores, (total,)), empty(scores, (total,), "int64"))
    _core.topk(scores, counts, ends, *result)
    return result


def topk(scores: Array, k: int | Array, *, offsets: Array | None = None) -> TopK:
    """Exactly k of each row: the largest, in their original order; of equals the first.

    The order is that of a stable sort, so −0 and 0 are equal. Linear time whatever the scores.
    Source: SpAtten (HPCA 2021), its top-k engine.

    Parameters
    ----------
    scores : (…, n) float32, float16 or bfloat16; 1-D (t,) with offsets
    k : int; with offsets an int for all sequences or (b,) integers
    offsets : (b + 1,) integers from 0 to t: sequence i is scores[offsets[i]:offsets[i + 1]]

    Returns
    -------
    TopK: ``values`` of scores' kind and dtype, ``indices`` int64, both (…, k); with offsets 1-D,
    sequence after sequence, and the indices are positions in ``scores``.

    Raises
    ------
    ValueError (shapes, offsets, NaN, a k that a row can't give), TypeError (dtypes).

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> sp.topk(np.array([7, 2, 6, 4, 9, 1, 3, 5], np.float32), 4).indices.tolist()
    [0, 2, 4, 7]
    """
    op = "topk"
    plain = isinstance(scores, np.ndarray)  # its own way: calls cost more than 128 comparisons
    if not plain:
        kind_of(op, "scores", scores)
    if offsets is not None:
        return _packed(scores, k, offsets)
    try:
        count = operator.index(k)
    except TypeError:
        raise TypeError(
            f"{op}: k is a {type(k).__name__}, expected an integer where there are no offsets"
        ) from None
    shape = scores.shape if plain else shape_of(scores)
    if not shape:
        raise ValueError(f"{op}: scores has 0 dimensions, expected at least 1")
    if not 0 <= count <= shape[-1]:
        raise ValueError(f"{op}: k is {count}, expected 0 to {shape[-1]}")
    wanted = (*shape[:-1], count)
    if plain:
        values, indices = np.empty(wanted, scores.dtype), np.empty(wanted, _INT64)
    else:
        values, indices = empty(scores, wanted), empty(scores, wanted, "int64")
    _core.topk(scores, count, None, values, indices)
    return tuple.__new__(TopK, (values, indices))  # TopK's own runs as bytecode
