"""Which tokens of packed sequences stay, and their rows."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Index = NDArray[np.int64]


class SelectedTokens(NamedTuple):
    """``index`` (k,) of the tokens kept, ``offsets`` (b + 1,) of their sequences, both int64."""

    index: Index  # type: ignore[assignment]
    offsets: Index


def _protected(protect: ArrayLike | None, start: int, n: int) -> set[int]:
    """Positions in a sequence of ``n`` tokens that begins at ``start``."""
    if n == 0:
        return set()
    if protect is None:
        return {0}
    given = np.asarray(protect)
    if given.dtype == bool:
        return set(np.nonzero(given[start : start + n])[0].tolist())
    for position in given.tolist():
        if not -n <= position < n:
            raise ValueError(f"select_tokens: protect holds position {position}, of {n} tokens")
    return {position % n for position in given.tolist()}


def select_tokens(
    importance: ArrayLike,
    keep: ArrayLike,
    *,
    offsets: ArrayLike,
    protect: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
) -> SelectedTokens:
    """Of each sequence floor(keep·length + 1/2) tokens, at least one: protected, then the largest.

    >>> select_tokens([0.1, 3, 1, 2], 0.5, offsets=[0, 4]).index.tolist()
    [0, 1]
    """
    scores = np.asarray(importance).astype(np.float64)
    if np.isnan(scores).any():
        raise ValueError(
            "select_tokens: importance holds NaN, expected numbers that can be ordered"
        )
    ends = np.asarray(offsets).tolist()
    own = [stop - start for start, stop in pairwise(ends)]
    of = own if lengths is None else np.asarray(lengths).tolist()
    fractions = np.broadcast_to(np.asarray(keep, np.float64), (len(own),)).tolist()
    picked: list[list[int]] = []
    for start, n, length, fraction in zip(ends[:-1], own, of, fractions, strict=True):
        if not 0.0 < fraction <= 1.0:
            raise ValueError(f"select_tokens: keep is {fraction}, expected a fraction in (0, 1]")
        sure = _protected(protect, start, n)
        count = max(min(n, max(1, math.floor(fraction * length + 0.5))), len(sure))
        order = sorted(range(n), key=lambda j: (j not in sure, -scores[start + j], j))
        picked.append([start + j for j in sorted(order[:count])])
    index = np.array([i for one in picked for i in one], np.int64)
    return SelectedTokens(index, np.cumsum([0, *(len(one) for one in picked)]).astype(np.int64))


def gather_tokens(x: ArrayLike, index: ArrayLike) -> NDArray[np.float64]:
    """The rows of ``x`` (t, …) at ``index`` (k,).

    >>> gather_tokens([[1, 2], [3, 4], [5, 6]], [0, 2]).tolist()
    [[1.0, 2.0], [5.0, 6.0]]
    """
    rows, picked = np.asarray(x).astype(np.float64), np.asarray(index)
    if picked.size and (picked.min() < 0 or picked.max() >= len(rows)):
        raise ValueError(f"gather_tokens: index is outside [0, {len(rows)})")
    gathered: NDArray[np.float64] = rows[picked]
    return gathered
