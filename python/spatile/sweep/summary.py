"""What a document's rows say: means over seeds, paired with dense, with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatile.finetune.intervals import (
    RESAMPLES,
    Floats,
    Ints,
    correlate,
    f1_of_cells,
    matthews_of_cells,
    percentiles,
    resampled_indices,
    widening,
)
from spatile.sweep.configuration import Configuration
from spatile.sweep.rows import decode

__all__ = [
    "FASTER",
    "Compared",
    "Estimate",
    "Summary",
    "break_even",
    "compare_methods",
    "may_break_even",
    "summarize",
]

#: How many times as fast as the dense model is more than the noise of the clock.
FASTER = 1.05


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; NaN where undefined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """One configuration over all seeds.

    ``mean`` is the metric's mean over seeds, ``loss`` the mean of dense − pruned, each seed paired
    with its own dense model, ``worst`` the lowest of the seeds, ``pruned`` the mean straight after
    pruning (None where unknown), ``above_floor`` whether the mean is above the majority class's
    score by more than its interval (None where there is no such score). Times are milliseconds, and
    speed-ups the dense model's time (by spatile, by PyTorch) over the packed one's, of medians or
    of minima, whichever is less; ``operations`` is the share of the dense model's multiply-adds
    that the packed one does on dev, over the seeds. None where not measured. ``achieved`` is the
    share of the encoder's weights that is gone, the mean over seeds; the configuration's
    ``sparsity`` counts groups, and where groups of unequal size compete the two differ.
    """

    configuration: Configuration
    seeds: int
    mean: Estimate
    dense: float
    loss: Estimate
    worst: float
    pruned: float | None
    floor: float | None
    above_floor: bool | None
    latency_ms: float | None
    dense_latency_ms: float | None
    torch_latency_ms: float | None
    speedup: float | None
    torch_speedup: float | None
    operations: float | None
    achieved: float
    seconds: float

    @property
    def pattern(self) -> str:
        """The weights' pattern."""
        return self.configuration.pattern

    @property
    def method(self) -> str:
        """How it was trained."""
        return self.configuration.method

    @property
    def sparsity(self) -> float:
        """The share of the pattern's groups that was to go."""
        return self.configuration.sparsity


@dataclass(frozen=True)
class Compared:
    """A method's metric minus another's, all else being the same, seeds and dev rows too."""

    configuration: Configuration
    other: str
    difference: Estimate


def summarize(document: Mapping[str, Any], metric: str | None = None) -> list[Summary]:
    """A :class:`Summary` per configuration, in the order of the rows; of the first metric.

    The intervals are percentiles of a bootstrap with two levels: in each of 2000 resamples the dev
    rows are drawn with replacement, the same rows for all seeds, for pruned and for dense models,
    and then the seeds are. So they cover what another dev set of the size and other seeds would
    have given, on the training rows that these models saw; they are not adjusted for there being
    many configurations. Few seeds show too little of how seeds differ, so the percentiles are
    widened by as much as Student's t asks for (:func:`widening`); with one seed they know nothing
    of it.

    Raises ValueError naming the configuration that lacks a seed, has one twice, or is scored on
    another number of dev rows than the others.
    """
    metric = document["metrics"][0] if metric is None else metric
    rows = _grouped(document, metric)
    scores = _Scores(document, metric)
    return [_summary(key, found, scores, document["seeds"]) for key, found in rows.items()]


def compare_methods(document: Mapping[str, Any], metric: str | None = None) -> list[Compared]:
    """Each method minus the document's first, wherever both have a configuration.

    Paired by seed and dev row; intervals as in :func:`summarize`.
    """
    metric = document["metrics"][0] if metric is None else metric
    rows, scores = _grouped(document, metric), _Scores(document, metric)
    first = next((key.method for key in rows), "")
    found = []
    for key in rows:
        base = key._replace(method=first)
        if key.method != first and base in rows:
            mine, other = (scores.of_cells(k, document["seeds"]) for k in (key, base))
            found.append(Compared(key, first, scores.estimate(mine - other)))
    return found


def break_even(summaries: list[Summary]) -> dict[tuple[str, str], Summary | None]:
    """(pattern, method) → where the packed model starts to be faster than dense; None: nowhere.

    That is the lowest ``achieved`` from which on all that was measured is faster by at least
    :data:`FASTER` and does fewer operations (where these are known): the clock alone finds a model
    that does as much as the dense one a few per cent faster, or slower.

    Configurations that were not timed or drop tokens or heads don't count; a pattern without any
    timing is left out.
    """
    timed = list(filter(may_break_even, summaries))
    found: dict[tuple[str, str], Summary | None] = {(s.pattern, s.method): None for s in timed}
    for s in sorted(timed, key=lambda s: s.achieved):
        assert s.speedup is not None
        faster = s.speedup >= FASTER and (s.operations is None or s.operations < 1.0)
        key = s.pattern, s.method
        found[key] = (found[key] or s) if faster else None
    return found


def may_break_even(s: Summary) -> bool:
    """Whether :func:`break_even` looks at a configuration."""
    kept = s.configuration.keep_tokens, s.configuration.keep_heads
    return s.speedup is not None and s.sparsity > 0 and kept == (1.0, 1.0)


# ---- rows


def _grouped(document: Mapping[str, Any], metric: str) -> dict[Configuration, list[dict[str, Any]]]:
    """Rows of the metric by configuration, each with all seeds once and the same dev rows."""
    groups: dict[Configuration, list[dict[str, Any]]] = {}
    for row in document["rows"]:
        if row["metric"] == metric:
            groups.setdefault(Configuration.of_row(row), []).append(row)
    wanted = sorted(document["seeds"])
    sizes = {row["dev_rows"]: row for rows in groups.values() for row in rows}
    if len(sizes) > 1:
        (n, a), (m, b) = list(sizes.items())[:2]
        raise ValueError(
            f"sweep: {_named(b)} is scored on {m} dev rows, expected {n} as {_named(a)}"
        )
    for key, rows in groups.items():
        seeds = sorted(row["seed"] for row in rows)
        if seeds != wanted:
            lacks = [seed for seed in wanted if seed not in seeds]
            why = f"seed {lacks[0]} is missing" if lacks else "one is there twice or unknown"
            raise ValueError(
                f"sweep: {key.name} has seeds {_listed(seeds)}, expected "
                f"{_listed(wanted)}: {why}, so it can't be paired with the others"
            )
    return groups


def _named(row: Mapping[str, Any]) -> str:
    return Configuration.of_row(row).with_seed(row["seed"])


def _listed(seeds: list[int]) -> str:
    return ", ".join(str(seed) for seed in seeds) or "none"


def _summary(
    key: Configuration, rows: list[dict[str, Any]], scores: _Scores, seeds: list[int]
) -> Summary:
    mine = scores.of_cells(key, seeds)
    dense = scores.of_dense(seeds)
    floor = scores.of_floor()
    above: bool | None = None
    if floor is not None:
        above = scores.estimate(mine - floor).low > 0
    timed = next((row for row in rows if row["latency_ms"] is not None), rows[0])
    straight = [row["pruned"] for row in rows if row["pruned"] is not None]
    values = [math.nan if row["value"] is None else row["value"] for row in rows]
    counted = [r for r in rows if r["multiply_adds"] is not None]
    dense_count = sum(r["dense_multiply_adds"] for r in counted)
    return Summary(
        key,
        seeds=len(rows),
        mean=scores.estimate(mine),
        dense=float(dense[:, 0].mean()),
        loss=scores.estimate(dense - mine),
        worst=float(np.min(values)),  # NaN where one is
        pruned=float(np.mean(straight)) if straight else None,
        floor=rows[0]["floor"],
        above_floor=above,
        latency_ms=timed["latency_ms"],
        dense_latency_ms=timed["dense_latency_ms"],
        torch_latency_ms=timed["torch_latency_ms"],
        speedup=_speedup(timed, "dense_latency"),
        torch_speedup=_speedup(timed, "torch_latency"),
        operations=sum(r["multiply_adds"] for r in counted) / dense_count if dense_count else None,
        achieved=float(np.mean([row["achieved"] for row in rows])),
        seconds=sum(row["seconds"] for row in rows),
    )


def _speedup(row: Mapping[str, Any], base: str) -> float | None:
    if row["latency_ms"] is None:
        return None
    ratios = [row[f"{base}{kind}_ms"] / row[f"latency{kind}_ms"] for kind in ("", "_min")]
    return float(min(ratios))


# ---- resampled scores


class _Scores:
    """The metric of predictions on the dev rows themselves and on each resample of them."""

    def __init__(self, document: Mapping[str, Any], metric: str) -> None:
        self._document, self._metric = document, metric
        self._labels = decode(document["dev"]["labels"])
        n = len(self._labels)
        itself = np.arange(n)[None]
        self._index = [itself, *resampled_indices(n, seed=0)]
        self._found: dict[str, Floats] = {}

    def of_cells(self, key: Configuration, seeds: list[int]) -> Floats:
        """(seeds, 1 + RESAMPLES): a configuration's models."""
        return np.stack([self._of(key.with_seed(seed)) for seed in seeds])

    def of_dense(self, seeds: list[int]) -> Floats:
        """(seeds, 1 + RESAMPLES): the dense models."""
        return np.stack([self._of(f"dense seed {seed}") for seed in seeds])

    def of_floor(self) -> Floats | None:
        """(1 + RESAMPLES): the majority class; None where there is none."""
        majority = self._document["majority"]
        if majority is None:
            return None
        return self._score(np.full_like(self._labels, majority))

    def estimate(self, series: Floats) -> Estimate:
        """The mean over seeds of ``series`` (seeds, 1 + RESAMPLES), which are drawn too."""
        count = len(series)
        value = float(series[:, 0].mean())
        if math.isnan(value):
            return Estimate(math.nan, math.nan, math.nan)
        drawn = np.random.default_rng(1).integers(count, size=(count, RESAMPLES))
        means = series[drawn, 1 + np.arange(RESAMPLES)].mean(axis=0)
        wider = widening(
            rows=float(np.nanvar(series[:, 1:].mean(axis=0))),
            seeds=float(np.var(series[:, 0], ddof=1)) / count if count > 1 else 0.0,
            count=count,
        )
        low, high = (value + wider * (end - value) for end in percentiles(means))
        return Estimate(value, low, high)

    def _of(self, name: str) -> Floats:
        if name not in self._found:
            if name not in self._document["dev"]:
                raise ValueError(f"sweep: predictions of {name} are missing, expected under 'dev'")
            self._found[name] = self._score(decode(self._document["dev"][name]))
        return self._found[name]

    def _score(self, predicted: NDArray[Any]) -> Floats:
        one = _METRICS.get(self._metric)
        y, p = self._labels, predicted
        if one is None:
            ranks = self._metric == "spearman"
            parts = [correlate(y, p, index, ranks=ranks) for index in self._index]
            return np.concatenate(parts)
        if self._metric == "f1":
            positive = self._document["positive"]
            y, p = ((v == positive).astype(np.int64) for v in (y, p))
        return np.concatenate([one(_counts(index), y, p) for index in self._index])


def _counts(index: Ints) -> Any:
    """How often each row was drawn: index (r, n) → (r, n). As floats, which multiply faster."""
    r, n = index.shape
    flat = (index + n * np.arange(r)[:, None]).reshape(-1)
    return np.bincount(flat, minlength=r * n).reshape(r, n).astype(np.float64)


def _accuracy(draws: Any, y: Ints, p: Ints) -> Floats:
    return np.asarray(draws @ (y == p) / draws.sum(axis=1))


_METRICS: dict[str, Callable[[Any, Ints, Ints], Floats]] = {
    "accuracy": _accuracy,
    "f1": f1_of_cells,
    "matthews": matthews_of_cells,
}
