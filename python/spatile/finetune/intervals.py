"""Intervals of scores: Wilson's and Newcombe's for shares, and the bootstrap for everything else.

The bootstrap draws examples with replacement and takes the 2.5 and 97.5 % points of the score over
:data:`RESAMPLES` draws. For scores of a confusion table the examples of one cell are alike, so one
multinomial draw over the cells stands for drawing the examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "RESAMPLES",
    "Floats",
    "Ints",
    "correlate",
    "f1_of_cells",
    "matthews_of_cells",
    "newcombe",
    "percentiles",
    "resampled_cells",
    "resampled_indices",
    "student_quantile",
    "widening",
    "wilson",
]

RESAMPLES = 2000

_Z = 1.959963984540054  # the normal distribution's 97.5 % point
_CHUNK = 2_000_000  # drawn indices held at a time

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a share, from Wilson (JASA 22, 1927); ``n`` ≥ 1."""
    share, z2 = successes / n, _Z * _Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At 0 and n the interval ends at 0 and 1 exactly; rounding would leave it a hair short.
    low = 0.0 if successes == 0 else centre - half
    return low, 1.0 if successes == n else centre + half


def newcombe(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Difference of two shares of the same examples, and its 95 % interval.

    Method 10 of Newcombe (Statistics in Medicine 17, 1998): Wilson's intervals, squared and
    added, less what the correlation of the two takes off.
    """
    n = len(first)
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    right = both + only_first, both + only_second
    share1, share2 = right[0] / n, right[1] / n
    (low1, high1), (low2, high2) = wilson(right[0], n), wilson(right[1], n)

    excess = float(both * neither - only_first * only_second)
    if excess > 0:
        excess = max(excess - n / 2, 0.0)
    margins = right[0] * (n - right[0]) * right[1] * (n - right[1])
    phi = excess / math.sqrt(margins) if margins else 0.0

    def half(down: float, up: float) -> float:
        return math.sqrt(max(down * down - 2 * phi * down * up + up * up, 0.0))

    value = (only_first - only_second) / n
    low = value - half(share1 - low1, high2 - share2)
    high = value + half(high1 - share1, share2 - low2)
    return value, max(low, -1.0), min(high, 1.0)


def percentiles(values: Floats) -> tuple[float, float]:
    """2.5 and 97.5 % points of the resamples in which the score is defined (not NaN)."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def widening(*, rows: float, seeds: float, count: int) -> float:
    """By how much an interval from resampled rows and seeds must grow for ``count`` seeds.

    ``rows`` and ``seeds`` are the variances of the mean that come of either. Drawing from ``count``
    seeds shows only (count − 1)/count of the latter, and the normal distribution's quantile knows
    nothing of its being estimated: Student's t does, with Satterthwaite's degrees of freedom
    (Biometrics Bulletin 2, 1946).

    >>> round(widening(rows=0.0, seeds=1.0, count=3), 2), widening(rows=1.0, seeds=0.0, count=3)
    (2.69, 1.0)
    """
    if seeds <= 0.0 or count < 2:
        return 1.0
    freedom = (count - 1) * ((rows + seeds) / seeds) ** 2
    shown = rows + seeds * (count - 1) / count
    return student_quantile(freedom) / _Z * math.sqrt((rows + seeds) / shown)


def student_quantile(freedom: float) -> float:
    """Student's t at 97.5 %, for any number of degrees of freedom from 1 on.

    With t = √ν·tan θ its density over θ is proportional to cos(θ)^(ν − 1).

    >>> [round(student_quantile(n), 3) for n in (1, 2, 10, 1e9)]
    [12.706, 4.303, 2.228, 1.96]
    """
    if freedom > 1e5:
        return _Z
    angle = np.linspace(0.0, math.pi / 2, 200_001)
    density = np.cos(angle) ** (freedom - 1)
    share = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(0.95 * share[-1], share, angle)))


# ---- scores of a confusion table


def resampled_cells(columns: Sequence[Ints], seed: int) -> tuple[list[Ints], Ints]:
    """The distinct rows of ``columns``, and how often each occurs in each resample.

    Columns are (n,) each. Returns the columns of the distinct rows, (cells,) each, and counts
    (1 + RESAMPLES, cells) whose first row is the sample itself.
    """
    cells, counts = np.unique(np.stack(columns), axis=1, return_counts=True)
    n = int(counts.sum())
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=RESAMPLES)
    return list(cells), np.concatenate([counts[None], draws])


def f1_of_cells(draws: Ints, y: Ints, p: Ints) -> Floats:
    """F1 of each resample: draws (r, cells), ``y`` and ``p`` (cells,) 1 where positive → (r,)."""
    hits = 2.0 * (draws @ (y * p))
    total: Floats = (draws @ (y + p)).astype(np.float64)
    return np.divide(hits, total, out=np.zeros_like(total), where=total > 0)


def matthews_of_cells(draws: Ints, y: Ints, p: Ints) -> Floats:
    """Matthews correlation of each resample: draws (r, cells), ``y`` and ``p`` (cells,) → (r,)."""
    classes = np.unique(np.concatenate([y, p]))
    t = draws.astype(np.float64)
    n = t.sum(axis=1)
    label_counts, prediction_counts = (t @ (v[:, None] == classes) for v in (y, p))
    covariance = (t @ (y == p)) * n - (label_counts * prediction_counts).sum(axis=1)
    variances = (n**2 - (label_counts**2).sum(axis=1)) * (n**2 - (prediction_counts**2).sum(axis=1))
    spread: Floats = np.sqrt(variances)
    value: Floats = np.divide(covariance, spread, out=np.zeros_like(spread), where=spread > 0)
    return np.clip(value, -1.0, 1.0)


# ---- correlations


def resampled_indices(n: int, seed: int) -> Iterator[Ints]:
    """Index arrays (some, n) of bootstrap resamples, ``RESAMPLES`` rows in all."""
    random = np.random.default_rng(seed)
    step = max(1, _CHUNK // n)
    for start in range(0, RESAMPLES, step):
        yield random.integers(n, size=(min(step, RESAMPLES - start), n))


def correlate(y: Floats, p: Floats, index: Ints, *, ranks: bool) -> Floats:
    """Correlation of each resample: index (r, n) → (r,), NaN where a side is constant.

    Pearson's, or Spearman's with ``ranks``.
    """
    if index.shape[1] < 2:
        return np.full(len(index), np.nan)
    sides = (_mean_ranks(y, index), _mean_ranks(p, index)) if ranks else (y[index], p[index])
    # Equal numbers less their rounded mean may leave dust, so constancy is asked of the numbers.
    constant = np.zeros(len(index), dtype=bool)
    centred = []
    for side in sides:
        constant |= side.min(axis=1) == side.max(axis=1)
        side = side - side.mean(axis=1, keepdims=True)
        scale = np.abs(side).max(axis=1, keepdims=True)
        centred.append(side / np.where(scale > 0, scale, 1.0))
    a, b = centred
    spread = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    value = np.divide((a * b).sum(axis=1), spread, out=np.zeros_like(spread), where=spread > 0)
    return np.where(constant, np.nan, np.clip(value, -1.0, 1.0))


def _mean_ranks(values: Floats, index: Ints) -> Floats:
    """Ranks from 1 within each resample, ties sharing their mean: index (r, n) → (r, n).

    The mean rank of the j-th distinct number is (how many are smaller) + (how many equal + 1) / 2,
    so counting replaces a sort per resample.
    """
    distinct, code = np.unique(values, return_inverse=True)
    drawn = code.reshape(-1)[index]
    r, k = len(index), len(distinct)
    offset = k * np.arange(r)[:, None]
    counts = np.bincount((drawn + offset).reshape(-1), minlength=r * k).reshape(r, k)
    mean_rank = np.cumsum(counts, axis=1) - (counts - 1) / 2
    return np.take_along_axis(mean_rank, drawn, axis=1)
