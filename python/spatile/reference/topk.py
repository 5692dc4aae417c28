"""The k largest, in their original order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]


class TopK(NamedTuple):
    """``values`` float64 and ``indices`` int64, both in the order in which the scores stand."""

    values: Float
    indices: NDArray[np.int64]


def _top_positions(scores: Float, k: int) -> NDArray[np.int64]:
    """Positions of the k largest of a 1-D array; a stable sort keeps the first of equals."""
    if not 0 <= k <= scores.size:
        raise ValueError(f"topk: k is {k}, expected 0 to {scores.size}")
    return np.sort(np.argsort(-scores, kind="stable")[:k]).astype(np.int64)


def topk(scores: ArrayLike, k: ArrayLike, *, offsets: ArrayLike | None = None) -> TopK:
    """Exactly k of the last axis of ``scores`` (…, n): values and indices (…, k).

    With ``offsets`` (b+1), ``scores`` is 1-D, ``k`` an integer or (b,), each sequence gives its own
    k, and the indices are absolute. Raises ValueError for NaN and for a k that a sequence can't
    give.

    >>> topk([7, 2, 6, 4, 9, 1, 3, 5], 4).values.tolist()
    [7.0, 6.0, 9.0, 5.0]
    """
    x = np.asarray(scores).astype(np.float64)
    if np.isnan(x).any():
        raise ValueError("topk: scores holds NaN, expected numbers that can be ordered")
    if offsets is None:
        count = int(np.asarray(k))
        indices = np.empty((*x.shape[:-1], count), np.int64)
        for row in np.ndindex(x.shape[:-1]):
            indices[row] = _top_positions(x[row], count)
        return TopK(np.take_along_axis(x, indices, axis=-1), indices)
    starts = np.asarray(offsets).tolist()
    counts = np.broadcast_to(np.asarray(k), (len(starts) - 1,)).tolist()
    picked = [
        start + _top_positions(x[start:stop], count)
        for start, stop, count in zip(starts[:-1], starts[1:], counts, strict=True)
    ]
    indices = np.concatenate([np.empty(0, np.int64), *picked])
    return TopK(x[indices], indices)
