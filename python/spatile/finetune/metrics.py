"""Scores of a model on labelled examples, each with a 95 % interval.

Accuracy's interval is Wilson's. The others have percentile intervals of a bootstrap over examples,
2000 resamples drawn from ``seed``, so the same input gives the same interval. A bootstrap can't
see what the sample lacks: a perfect F1 gets the interval [1, 1], however few the examples.

Where a score is undefined:

- F1 with no positive among labels and predictions, and Matthews correlation with a single class
  in either, are 0.0 (as in scikit-learn).
- Pearson and Spearman correlation with a constant on either side, or fewer than two examples,
  and every score of no examples, are NaN: printed as ``undefined``, None in ``to_json``.

``labels`` come first, then ``predictions``: class indices of any integer dtype, or numbers for the
two correlations, of shape (n,). Raises ValueError for other shapes, for NaN and infinity,
TypeError for other dtypes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .intervals import (
    Floats,
    Ints,
    correlate,
    f1_of_cells,
    matthews_of_cells,
    newcombe,
    percentiles,
    resampled_cells,
    resampled_indices,
    wilson,
)

__all__ = [
    "METRICS",
    "Score",
    "accuracy",
    "evaluate",
    "f1",
    "majority_floor",
    "matthews",
    "paired_difference",
    "pearson",
    "spearman",
]

METRICS = ("accuracy", "f1", "matthews", "pearson", "spearman")


@dataclass(frozen=True)
class Score:
    """A metric's ``value`` on ``n`` examples with the 95 % interval ``low`` … ``high``.

    >>> print(Score("accuracy", 0.8, 0.79, 0.81, 408))
    accuracy 0.800 [0.790, 0.810] (n = 408)
    """

    name: str
    value: float
    low: float
    high: float
    n: int

    @property
    def defined(self) -> bool:
        """False where the value is NaN: see the module's text."""
        return not math.isnan(self.value)

    def __str__(self) -> str:
        if not self.defined:
            return f"{self.name} undefined (n = {self.n})"
        return f"{self.name} {self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n = {self.n})"

    def to_json(self) -> dict[str, Any]:
        """A dict that JSON can hold: None for NaN."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        finite = {key: None if math.isnan(x) else x for key, x in numbers.items()}
        return {"name": self.name, **finite, "n": self.n}


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> Score:
    """The fraction of right predictions, with Wilson's interval (JASA 22, 1927).

    >>> print(accuracy([0, 1, 1, 0], [0, 1, 0, 0]))
    accuracy 0.750 [0.301, 0.954] (n = 4)
    """
    y, p = _classes("accuracy", labels, predictions)
    if len(y) == 0:
        return _undefined("accuracy", 0)
    right = int((y == p).sum())
    return Score("accuracy", right / len(y), *wilson(right, len(y)), len(y))


def f1(labels: ArrayLike, predictions: ArrayLike, *, positive: int = 1, seed: int = 0) -> Score:
    """2·TP / (2·TP + FP + FN) of the class ``positive``; every other class is negative.

    >>> print(f1([1, 1, 0, 0], [1, 1, 1, 0]).value)
    0.8
    """
    y, p = _classes("f1", labels, predictions)
    y, p = (y == positive).astype(np.int64), (p == positive).astype(np.int64)
    return _of_classes("f1", y, p, f1_of_cells, seed)


def matthews(labels: ArrayLike, predictions: ArrayLike, *, seed: int = 0) -> Score:
    """Matthews correlation; for more than two classes Gorodkin's R_K (2004).

    >>> print(round(matthews([1, 1, 0, 0], [1, 1, 1, 0]).value, 4))
    0.5774
    """
    y, p = _classes("matthews", labels, predictions)
    return _of_classes("matthews", y, p, matthews_of_cells, seed)


def pearson(labels: ArrayLike, predictions: ArrayLike, *, seed: int = 0) -> Score:
    """Pearson's correlation of two series of numbers.

    >>> print(round(pearson([1.0, 2.0, 3.0], [1.0, 2.0, 2.0]).value, 4))
    0.866
    """
    return _of_pairs("pearson", labels, predictions, seed)


def spearman(labels: ArrayLike, predictions: ArrayLike, *, seed: int = 0) -> Score:
    """Spearman's correlation: Pearson's of the ranks, equal numbers sharing their mean rank.

    >>> print(spearman([1.0, 2.0, 3.0], [1.0, 4.0, 9.0]).value)
    1.0
    """
    return _of_pairs("spearman", labels, predictions, seed)


def evaluate(
    metrics: Sequence[str],
    labels: ArrayLike,
    predictions: ArrayLike,
    *,
    positive: int | None = 1,
    seed: int = 0,
) -> dict[str, Score]:
    """The scores named by ``metrics`` (of :data:`METRICS`), in that order.

    ``positive`` is F1's class; None, as of a task without one, is an error where F1 is asked for.

    >>> list(evaluate(("accuracy", "f1"), [0, 1], [0, 1]))
    ['accuracy', 'f1']
    """
    one: dict[str, Callable[[], Score]] = {
        "accuracy": lambda: accuracy(labels, predictions),
        "f1": lambda: f1(labels, predictions, positive=_positive("evaluate", positive), seed=seed),
        "matthews": lambda: matthews(labels, predictions, seed=seed),
        "pearson": lambda: pearson(labels, predictions, seed=seed),
        "spearman": lambda: spearman(labels, predictions, seed=seed),
    }
    return {name: one[_metric("evaluate", name)]() for name in metrics}


def paired_difference(
    metric: str,
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    *,
    positive: int | None = 1,
    seed: int = 0,
) -> Score:
    """Score of ``first`` minus score of ``second`` on the same examples, with a 95 % interval.

    The pairing matters: two models err on the same examples, so the interval is narrower than
    the two models' own would suggest. For accuracy it is Newcombe's (Statistics in Medicine 17,
    1998, method 10), which holds up where the models never differ; for the others a bootstrap over
    examples, both models scored on each resample.

    >>> print(paired_difference("accuracy", [1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]).value)
    0.25
    """
    _metric("paired_difference", metric)
    if metric in ("pearson", "spearman"):
        numbers = [_numbers(metric, labels, p) for p in (first, second)]
        return _pair_difference_of_numbers(metric, numbers, seed)
    (y, a), (_, b) = (_classes(metric, labels, p) for p in (first, second))
    n = len(y)
    if n == 0:
        return _undefined(metric, 0)
    if metric == "accuracy":
        value, low, high = newcombe(y == a, y == b)
        return Score(metric, value, low, high, n)
    if metric == "f1":
        klass = _positive("paired_difference", positive)
        y, a, b = ((v == klass).astype(np.int64) for v in (y, a, b))
    statistic = f1_of_cells if metric == "f1" else matthews_of_cells
    (y, a, b), draws = resampled_cells((y, a, b), seed)
    difference = statistic(draws, y, a) - statistic(draws, y, b)
    return Score(metric, float(difference[0]), *percentiles(difference[1:]), n)


def majority_floor(
    train_labels: ArrayLike,
    dev_labels: ArrayLike,
    metrics: Sequence[str],
    *,
    positive: int | None = 1,
    seed: int = 0,
) -> dict[str, Score]:
    """Scores on dev of a model that always gives the majority class of train.

    Of equally frequent classes the first. For float labels it gives their mean over train, and
    the correlations are undefined (NaN). ValueError where train is empty.

    >>> print(majority_floor([1, 1, 0], [1, 0], ["accuracy"])["accuracy"].value)
    0.5
    """
    train, dev = np.asarray(train_labels), np.asarray(dev_labels)
    if train.size == 0:
        raise ValueError("majority_floor: train_labels is empty, expected at least one label")
    if train.dtype.kind == "f":
        constant = np.full(dev.shape, train.mean(dtype=np.float64))
    else:
        values, counts = np.unique(train, return_counts=True)
        constant = np.full(dev.shape, values[np.argmax(counts)])
    return evaluate(metrics, dev, constant, positive=positive, seed=seed)


# ---- arguments


def _metric(op: str, name: str) -> str:
    if name not in METRICS:
        raise ValueError(f"{op}: metric is {name!r}, expected one of {', '.join(METRICS)}")
    return name


def _positive(op: str, positive: int | None) -> int:
    if positive is None:
        raise ValueError(f"{op}: positive is None, expected the class that f1 is about")
    return positive


def _pair(op: str, labels: ArrayLike, predictions: ArrayLike) -> tuple[Any, Any]:
    y, p = np.asarray(labels), np.asarray(predictions)
    if y.ndim != 1:
        raise ValueError(f"{op}: labels has shape {y.shape}, expected (n,)")
    if p.shape != y.shape:
        raise ValueError(f"{op}: predictions has shape {p.shape}, expected {y.shape}")
    return y, p


def _classes(op: str, labels: ArrayLike, predictions: ArrayLike) -> tuple[Ints, Ints]:
    y, p = _pair(op, labels, predictions)
    for name, values in (("labels", y), ("predictions", p)):
        if values.dtype.kind not in "iub" and values.size:
            raise TypeError(f"{op}: {name} is {values.dtype}, expected class indices (integers)")
    return y.astype(np.int64), p.astype(np.int64)


def _numbers(op: str, labels: ArrayLike, predictions: ArrayLike) -> tuple[Floats, Floats]:
    y, p = _pair(op, labels, predictions)
    for name, values in (("labels", y), ("predictions", p)):
        if values.dtype.kind not in "iubf":
            raise TypeError(f"{op}: {name} is {values.dtype}, expected numbers")
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise ValueError(
                f"{op}: {name}[{bad[0]}] is {values[bad[0]]}, expected a finite number"
            )
    return y.astype(np.float64), p.astype(np.float64)


def _undefined(name: str, n: int) -> Score:
    return Score(name, math.nan, math.nan, math.nan, n)


# ---- scores with their intervals


def _of_classes(
    name: str, y: Ints, p: Ints, statistic: Callable[[Ints, Ints, Ints], Floats], seed: int
) -> Score:
    if len(y) == 0:
        return _undefined(name, 0)
    (y, p), draws = resampled_cells((y, p), seed)
    values = statistic(draws, y, p)
    return Score(name, float(values[0]), *percentiles(values[1:]), int(draws[0].sum()))


def _of_pairs(name: str, labels: ArrayLike, predictions: ArrayLike, seed: int) -> Score:
    y, p = _numbers(name, labels, predictions)
    every = np.arange(len(y))[None]
    value = float(correlate(y, p, every, ranks=name == "spearman")[0])
    if math.isnan(value):
        return _undefined(name, len(y))
    resamples = [
        correlate(y, p, index, ranks=name == "spearman")
        for index in resampled_indices(len(y), seed)
    ]
    return Score(name, value, *percentiles(np.concatenate(resamples)), len(y))


def _pair_difference_of_numbers(
    metric: str, numbers: list[tuple[Floats, Floats]], seed: int
) -> Score:
    n = len(numbers[0][0])

    def difference(index: Ints) -> Floats:
        first, second = (correlate(y, p, index, ranks=metric == "spearman") for y, p in numbers)
        return first - second

    value = float(difference(np.arange(n)[None])[0])
    if math.isnan(value):
        return _undefined(metric, n)
    resamples = [difference(index) for index in resampled_indices(n, seed)]
    return Score(metric, value, *percentiles(np.concatenate(resamples)), n)
