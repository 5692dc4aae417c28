"""A document's tables, as text and as Markdown. Scores are in points: a hundredth of the metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from spatile.report.tables import Table
from spatile.sweep.summary import (
    Compared,
    Estimate,
    Summary,
    break_even,
    compare_methods,
    summarize,
)

__all__ = ["duration", "markdown", "tables_of"]

_NAMES = {"f1": "F1", "matthews": "Matthews", "pearson": "Pearson", "spearman": "Spearman"}


def metric_name(metric: str) -> str:
    """How tables and plots write it.

    >>> metric_name("f1"), metric_name("accuracy")
    ('F1', 'accuracy')
    """
    return _NAMES.get(metric, metric)


def tables_of(document: Mapping[str, Any]) -> list[Table]:
    """All tables, in the order they are read. Raises as :func:`summarize` does."""
    found = summarize(document)
    methods = list(dict.fromkeys(s.method for s in found))
    tables = [_grid(document, [s for s in found if s.method == m], m) for m in methods]
    tables.append(_all(document, found))
    compared = compare_methods(document)
    if compared:
        tables.append(_compared(document, compared))
    even = break_even(found)
    if even:
        tables.append(_even(even, found))
    return tables


def markdown(table: Table) -> str:
    """The table with a heading; notes below it."""
    lines = [f"### {table.title}", ""]
    lines.append("| " + " | ".join(table.heads) + " |")
    lines.append("|---" + "|---:" * (len(table.heads) - 1) + "|")
    lines += ["| " + " | ".join(row) + " |" for row in table.rows]
    lines += ["", *(f"{note}  " for note in table.notes[:-1]), *table.notes[-1:]]
    return "\n".join(lines).rstrip() + "\n"


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds.

    >>> duration(4500), duration(75.2)
    ('1 h 15 min', '1 min 15 s')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _grid(document: Mapping[str, Any], found: list[Summary], method: str) -> Table:
    metric = metric_name(document["metrics"][0])
    sparsities = sorted({s.sparsity for s in found})
    cells = {(s.pattern, s.sparsity): s for s in found}
    rows = []
    for pattern in dict.fromkeys(s.pattern for s in found):
        row = [pattern]
        for sparsity in sparsities:
            s = cells.get((pattern, sparsity))
            row.append("" if s is None else _score_and_loss(s))
        rows.append(tuple(row))
    seeds = len(document["seeds"])
    floor = document["floor"][document["metrics"][0]]
    return Table(
        f"{metric} at sparsity, method {method}",
        ("pattern", *(_percent(s) for s in sparsities)),
        tuple(rows),
        (
            f"Mean over {seeds} seed{'s' if seeds > 1 else ''}, in brackets less the dense models' "
            f"{_points(found[0].dense)}, all in points."
            + (
                ""
                if floor is None
                else f" The majority class alone scores {_points(floor)}; † is not above it by "
                f"more than the 95 % interval."
            ),
        ),
    )


def _score_and_loss(s: Summary) -> str:
    return f"{_points(s.mean.value)} ({_signed(-s.loss.value)})" + (
        " †" if s.above_floor is False else ""
    )


def _all(document: Mapping[str, Any], found: list[Summary]) -> Table:
    metric = metric_name(document["metrics"][0])
    rows = []
    for s in found:
        change = Estimate(-s.loss.value, -s.loss.high, -s.loss.low)
        rows.append(
            (
                s.pattern,
                s.method,
                _percent(s.sparsity),
                "" if s.pruned is None else _points(s.pruned),
                _points(s.mean.value),
                _interval(change),
                _points(s.worst),
                {True: "yes", False: "**no**", None: "no floor"}[s.above_floor],
                _number(s.latency_ms),
                _ratio(s.speedup),
                _ratio(s.torch_speedup),
            )
        )
    heads = (
        *(
            "pattern",
            "method",
            "pruned",
            "after the last pruning",
            metric,
            f"{metric} − dense, 95 %",
        ),
        *("worst seed", "above the floor", "ms", "dense / this", "PyTorch / this"),
    )
    return Table(
        "Every configuration",
        heads,
        tuple(rows),
        (
            "Differences are paired with the dense model of the same seed; intervals by a "
            "bootstrap over dev rows and seeds.",
            _timing_note(document, found),
        ),
    )


def _timing_note(document: Mapping[str, Any], found: list[Summary]) -> str:
    timed = [row for row in document["rows"] if row["latency_ms"] is not None]
    if not timed:
        return "Not timed."
    threads = timed[0]["threads"]
    dense = [s.dense_latency_ms for s in found if s.dense_latency_ms is not None]
    return (
        f"Times: median milliseconds per example in batches of one, text in, logits out, float32, "
        f"{threads} thread{'s' if threads > 1 else ''}, interleaved with the dense encoder run by "
        f"spatile ({min(dense):.2f} to {max(dense):.2f} ms) and by PyTorch; "
        f"ratios of medians or of minima, whichever is less."
    )


def _compared(document: Mapping[str, Any], compared: list[Compared]) -> Table:
    metric = metric_name(document["metrics"][0])
    rows = tuple(
        (c.pattern, _percent(c.sparsity), f"{c.method} − {c.other}", _interval(c.difference))
        for c in compared
    )
    return Table(
        "Methods compared",
        ("pattern", "pruned", "methods", f"{metric}, difference, 95 %"),
        rows,
        ("Paired by seed and dev row; points.",),
    )


def _even(even: Mapping[tuple[str, str], Summary | None], found: list[Summary]) -> Table:
    rows = []
    for (pattern, method), s in even.items():
        tried = sorted(t.sparsity for t in found if (t.pattern, t.method) == (pattern, method))
        if s is None:
            last = _percent(tried[-1])
            rows.append((pattern, method, f"nowhere (up to {last})", "", ""))
            continue
        least = " (the lowest measured)" if s.sparsity == tried[0] else ""
        change = _signed(-s.loss.value)
        speed = _ratio(s.speedup)
        rows.append((pattern, method, _percent(s.sparsity) + least, speed, change))
    return Table(
        "Break-even",
        ("pattern", "method", "faster than dense from", "dense / this", "points − dense there"),
        tuple(rows),
        ("The lowest measured sparsity at which the packed model is faster than spatile's dense.",),
    )


def _points(value: float | None) -> str:
    return "undefined" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _signed(value: float) -> str:
    if math.isnan(value):
        return "undefined"
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def _interval(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "undefined"
    return f"{_signed(estimate.value)} [{_signed(estimate.low)}, {_signed(estimate.high)}]"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}×"
