"""Which tokens of packed sequences stay, and their rows."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .topk import ends_of, ordered, whole_numbers

Index = NDArray[np.int64]


class SelectedTokens(NamedTuple):
    """``index`` (k,) of the tokens kept, ``offsets`` (b + 1,) of their sequences, both int64."""

    index: Index  # type: ignore[assignment]
    offsets: Index


def _protected(protect: ArrayLike | None, ends: list[int]) -> list[set[int]]:
    """Of each sequence its protected positions. Raises ValueError and TypeError."""
    lengths = [stop - start for start, stop in pairwise(ends)]
    if protect is None:
        return [{0} if n else set() for n in lengths]
    given = np.asarray(protect)
    if given.dtype == bool:
        if given.shape != (ends[-1],):
            raise ValueError(
                f"select_tokens: protect.shape is {given.shape}, expected ({ends[-1]},)"
            )
        return [set(np.nonzero(given[i:j])[0].tolist()) for i, j in pairwise(ends)]
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise TypeError(
            f"select_tokens: protect is {given.ndim}-D {given.dtype}, expected a bool for each "
            f"token or a list of positions"
        )
    for position in given.tolist():
        for i, n in enumerate(lengths):
            if n and not -n <= position < n:
                raise ValueError(
                    f"select_tokens: protect holds position {position}, sequence {i} has {n} tokens"
                )
    return [{position % n for position in given.tolist()} if n else set() for n in lengths]


def _fractions(keep: ArrayLike, n: int) -> list[float]:
    given = np.asarray(keep)
    if given.dtype.kind in "bcmMOSU":
        raise TypeError(
            f"select_tokens: keep is {keep!r}, expected a fraction in (0, 1] or several"
        )
    if given.ndim > 1 or given.size not in (1, n):
        raise ValueError(f"select_tokens: keep.shape is {given.shape}, expected one or {n}")
    fractions: list[float] = given.astype(np.float64).reshape(-1).tolist()
    for fraction in fractions:
        if not 0.0 < fraction <= 1.0:
            raise ValueError(f"select_tokens: keep is {fraction:g}, expected a fraction in (0, 1]")
    return fractions * n if len(fractions) == 1 else fractions


def select_tokens(
    importance: ArrayLike,
    keep: ArrayLike,
    *,
    offsets: ArrayLike,
    protect: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
) -> SelectedTokens:
    """Of each sequence floor(keep·length + 1/2) tokens, at least one: protected, then the largest.

    Raises ValueError and TypeError as the op does.

    >>> select_tokens([0.1, 3, 1, 2], 0.5, offsets=[0, 4]).index.tolist()
    [0, 1]
    """
    op = "select_tokens"
    scores, ends = np.asarray(importance).astype(np.float64), ends_of(op, offsets)
    if scores.shape != (ends[-1],):
        raise ValueError(f"{op}: importance.shape is {scores.shape}, expected ({ends[-1]},)")
    own = [stop - start for start, stop in pairwise(ends)]
    whole = np.array(own, np.int64) if lengths is None else whole_numbers(op, "lengths", lengths)
    of = whole.tolist()
    if whole.shape != (len(own),) or any(n > m for n, m in zip(own, of, strict=True)):
        raise ValueError(
            f"{op}: lengths is {of}, expected {len(own)} that are at least the sequences'"
        )
    fractions, protected = _fractions(keep, len(own)), _protected(protect, ends)
    ordered(op, "importance", scores)
    picked: list[list[int]] = []
    for i, (start, n) in enumerate(zip(ends[:-1], own, strict=True)):
        sure = protected[i]
        count = max(min(n, max(1, math.floor(fractions[i] * of[i] + 0.5))), len(sure))
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
    if not rows.ndim:
        raise ValueError("gather_tokens: x has 0 dimensions, expected at least 1")
    if picked.ndim != 1:
        raise ValueError(f"gather_tokens: index has {picked.ndim} dimensions, expected 1")
    if picked.dtype not in (np.int32, np.int64):
        raise TypeError(f"gather_tokens: index.dtype is {picked.dtype}, expected int32 or int64")
    for i, row in enumerate(picked.tolist()):
        if not 0 <= row < len(rows):
            raise ValueError(f"gather_tokens: index[{i}] is {row}, expected 0 to {len(rows) - 1}")
    gathered: NDArray[np.float64] = rows[picked]
    return gathered
