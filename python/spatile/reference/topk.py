"""The k largest, in their original order."""

from __future__ import annotations

import operator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]


class TopK(NamedTuple):
    """``values`` float64 and ``indices`` int64, both in the order in which the scores stand."""

    values: Float
    indices: NDArray[np.int64]


def ordered(op: str, name: str, scores: Float) -> Float:
    """The scores. Raises ValueError where one is NaN."""
    if np.isnan(scores).any():
        raise ValueError(
            f"{op}: {name} holds NaN (element {int(np.argmax(np.isnan(scores)))}), expected "
            f"numbers that can be ordered"
        )
    return scores


def whole_numbers(op: str, name: str, values: ArrayLike) -> NDArray[np.int64]:
    """At most one dimension of integers. Raises TypeError for anything else."""
    given = np.asarray(values)
    if given.ndim > 1 or (given.size and given.dtype.kind not in "iu"):
        raise TypeError(
            f"{op}: {name} is {given.ndim}-D {given.dtype}, expected at most 1-D integers"
        )
    return given.astype(np.int64)


def ends_of(op: str, offsets: ArrayLike) -> list[int]:
    """Where sequences begin and end: from 0 on, never falling. Raises ValueError and TypeError."""
    ends = whole_numbers(op, "offsets", offsets)
    if ends.ndim != 1 or len(ends) < 1:
        raise ValueError(
            f"{op}: offsets.shape is {ends.shape}, expected one dimension, of the first and the "
            f"last token at least"
        )
    if ends[0] != 0:
        raise ValueError(f"{op}: offsets[0] is {ends[0]}, expected 0")
    for i in range(1, len(ends)):
        if ends[i] < ends[i - 1]:
            raise ValueError(f"{op}: offsets[{i}] is {ends[i]}, expected at least {ends[i - 1]}")
    found: list[int] = ends.tolist()
    return found


def _top_positions(scores: Float, k: int, of: str = "") -> NDArray[np.int64]:
    """Positions of the k largest of a 1-D array; a stable sort keeps the first of equals."""
    if not 0 <= k <= scores.size:
        raise ValueError(f"topk: k is {k}{of}, expected 0 to {scores.size}")
    return np.sort(np.argsort(-scores, kind="stable")[:k]).astype(np.int64)


def _packed(x: Float, k: ArrayLike, offsets: ArrayLike) -> TopK:
    if x.ndim != 1:
        raise ValueError(f"topk: scores has {x.ndim} dimensions, expected 1")
    starts, counts = ends_of("topk", offsets), whole_numbers("topk", "k", k)
    n = len(starts) - 1
    if counts.size not in (1, n):
        raise ValueError(f"topk: k has {counts.size} entries, expected 1 or {n}")
    if starts[-1] != len(x):
        raise ValueError(f"topk: offsets ends at {starts[-1]}, expected scores.shape[0] = {len(x)}")
    picked = [
        starts[i] + _top_positions(x[starts[i] : starts[i + 1]], count, of=f" for sequence {i}")
        for i, count in enumerate(np.broadcast_to(counts, (n,)).tolist())
    ]
    indices = np.concatenate([np.empty(0, np.int64), *picked])
    return TopK(ordered("topk", "scores", x)[indices], indices)


def topk(scores: ArrayLike, k: ArrayLike, *, offsets: ArrayLike | None = None) -> TopK:
    """Exactly k of the last axis of ``scores`` (…, n): values and indices (…, k).

    With ``offsets`` (b+1), ``scores`` is 1-D, ``k`` an integer or (b,), each sequence gives its own
    k, and the indices are absolute. Raises ValueError for NaN, for offsets that are none of the
    scores' and for a k that a sequence can't give, TypeError where k or offsets are no integers.

    >>> topk([7, 2, 6, 4, 9, 1, 3, 5], 4).values.tolist()
    [7.0, 6.0, 9.0, 5.0]
    """
    x = np.asarray(scores).astype(np.float64)
    if offsets is not None:
        return _packed(x, k, offsets)
    try:
        count = operator.index(k)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"topk: k is a {type(k).__name__}, expected an integer where there are no offsets"
        ) from None
    if x.ndim == 0:
        raise ValueError("topk: scores has 0 dimensions, expected at least 1")
    if not 0 <= count <= x.shape[-1]:
        raise ValueError(f"topk: k is {count}, expected 0 to {x.shape[-1]}")
    indices = np.empty((*x.shape[:-1], count), np.int64)
    for row in np.ndindex(x.shape[:-1]):
        indices[row] = _top_positions(x[row], count)
    return TopK(np.take_along_axis(ordered("topk", "scores", x), indices, axis=-1), indices)
