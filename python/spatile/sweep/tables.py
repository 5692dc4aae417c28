"""A document's tables, as text and as Markdown. Scores are in points: a hundredth of the metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spatile.report.tables import Table
from spatile.sweep.configuration import Configuration
from spatile.sweep.summary import (
    FASTER,
    Compared,
    Estimate,
    Summary,
    break_even,
    compare_methods,
    may_break_even,
    summarize,
)

__all__ = ["duration", "markdown", "tables_of"]

_ALL = (1.0, 1.0)
_HALF_A_POINT = 0.005
_ABOVE = {True: "yes", False: "NO", None: "no floor"}
_OPERATIONS = (
    "Operations: multiply-adds of the layers on the dev rows, one at a time, counted by the engine "
    "while it ran."
)
_GROUPS = (
    "Sparsity is the share of the pattern's groups that was to go; in square brackets the share of "
    "the encoder's weights that is gone, where it differs by more than half a point: groups of "
    "unequal size compete."
)
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
    whole = [s for s in found if (s.configuration.keep_tokens, s.configuration.keep_heads) == _ALL]
    pruned = [s for s in whole if s.sparsity > 0]
    tables = [_grid(document, pruned)] if pruned else []
    if len(whole) < len(found):
        tables += _kept_grids(document, found)
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
    lines += ["| " + " | ".join(_bold(cell) for cell in row) + " |" for row in table.rows]
    lines += ["", *(f"{note}  " for note in table.notes[:-1]), *table.notes[-1:]]
    return "\n".join(lines).rstrip() + "\n"


def _bold(cell: str) -> str:
    return f"**{cell.lower()}**" if cell == _ABOVE[False] else cell


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds.

    >>> duration(4500), duration(75.2)
    ('1 h 15 min', '1 min 15 s')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _grid(document: Mapping[str, Any], found: list[Summary]) -> Table:
    metric = metric_name(document["metrics"][0])
    sparsities = sorted({s.sparsity for s in found})
    methods = list(dict.fromkeys(s.method for s in found))
    cells = {(s.pattern, s.method, s.sparsity): s for s in found}
    rows = []
    for pattern, method in dict.fromkeys((s.pattern, s.method) for s in found):
        row = [pattern, method] if len(methods) > 1 else [pattern]
        for sparsity in sparsities:
            s = cells.get((pattern, method, sparsity))
            row.append("" if s is None else _score_and_loss(s) + _gone(s))
        rows.append(tuple(row))
    several = len(methods) > 1
    return Table(
        f"{metric} at sparsity" + ("" if several else f", method {methods[0]}"),
        (*(("pattern", "method") if several else ("pattern",)), *(_percent(s) for s in sparsities)),
        tuple(rows),
        (_what_scores_mean(document, found[0].dense), *_what_sparsity_means(found)),
    )


def _gone(s: Summary) -> str:
    """What is gone of the weights, where the sparsity that was asked for does not say it."""
    return f" [{100 * s.achieved:.1f} %]" if abs(s.achieved - s.sparsity) > _HALF_A_POINT else ""


def _what_sparsity_means(found: Sequence[Summary]) -> tuple[str, ...]:
    return (_GROUPS,) if any(map(_gone, found)) else ()


def _kept_grids(document: Mapping[str, Any], found: list[Summary]) -> list[Table]:
    """A table of tokens and heads for each pattern, method and sparsity."""
    metric = metric_name(document["metrics"][0])
    tables = []
    fewer = [s for s in found if s.configuration[3:] != _ALL]
    for pattern, method, sparsity in dict.fromkeys(s.configuration[:3] for s in fewer):
        mine = {
            s.configuration[3:]: s
            for s in found
            if s.configuration[:3] == (pattern, method, sparsity)
        }
        tokens = sorted({t for t, _ in mine}, reverse=True)
        rows = [
            (
                _percent(heads),
                *(_score_and_loss(mine[t, heads]) if (t, heads) in mine else "" for t in tokens),
            )
            for heads in sorted({h for _, h in mine}, reverse=True)
        ]
        gone = _gone(next(iter(mine.values())))
        weights = f", {_percent(sparsity)}{gone} pruned by {pattern}" if sparsity else ""
        tables.append(
            Table(
                f"{metric} by tokens and heads kept, method {method}{weights}",
                ("heads \\ tokens", *(_percent(t) for t in tokens)),
                tuple(rows),
                (
                    "Kept on average over the layers. "
                    + _what_scores_mean(document, found[0].dense),
                    *_what_sparsity_means(list(mine.values())),
                ),
            )
        )
    return tables


def _what_scores_mean(document: Mapping[str, Any], dense: float) -> str:
    seeds = len(document["seeds"])
    floor = document["floor"][document["metrics"][0]]
    text = (
        f"Mean over {seeds} seed{'s' if seeds > 1 else ''}, in brackets less the dense models' "
        f"{_points(dense)}, all in points."
    )
    if floor is None:
        return text
    return (
        f"{text} The majority class alone scores {_points(floor)}; † is not above it by more than "
        f"the 95 % interval."
    )


def _score_and_loss(s: Summary) -> str:
    return f"{_points(s.mean.value)} ({_signed(-s.loss.value)})" + (
        " †" if s.above_floor is False else ""
    )


def _all(document: Mapping[str, Any], found: list[Summary]) -> Table:
    metric = metric_name(document["metrics"][0])
    counted = any(s.operations is not None for s in found)
    columns: list[tuple[str, Callable[[Summary], str]]] = [
        *_configuration_columns(
            [s.configuration for s in found], lambda s: s.configuration, gone=_gone
        ),
        ("method", lambda s: s.method),
    ]
    if any(s.pruned is not None for s in found):
        columns.append(
            ("after the last pruning", lambda s: "" if s.pruned is None else _points(s.pruned))
        )
    columns += [
        (metric, lambda s: _points(s.mean.value)),
        (f"{metric} − dense, 95 %", lambda s: _interval(_change(s))),
        ("worst seed", lambda s: _points(s.worst)),
        ("above the floor", lambda s: _ABOVE[s.above_floor]),
    ]
    if counted:
        columns.append(
            ("operations, dense / this", lambda s: _ratio(s.operations and 1 / s.operations))
        )
    columns += [
        ("ms", lambda s: _number(s.latency_ms)),
        ("dense / this", lambda s: _ratio(s.speedup)),
        ("PyTorch / this", lambda s: _ratio(s.torch_speedup)),
    ]
    notes = (
        "Differences are paired with the dense model of the same seed; intervals by a bootstrap "
        "over dev rows and seeds.",
        *_what_sparsity_means(found),
        *([_OPERATIONS] if counted else []),
        _timing_note(document, found),
    )
    return _table("Every configuration", columns, found, notes)


def _change(s: Summary) -> Estimate:
    return Estimate(-s.loss.value, -s.loss.high, -s.loss.low)


def _timing_note(document: Mapping[str, Any], found: list[Summary]) -> str:
    timed = [row for row in document["rows"] if row["latency_ms"] is not None]
    if not timed:
        return "Not timed."
    threads = timed[0]["threads"]
    dense = [s.dense_latency_ms for s in found if s.dense_latency_ms is not None]
    return (
        f"Times: median milliseconds per example of the first seed's model, in batches of one, "
        f"text in, logits out, float32, "
        f"{threads} thread{'s' if threads > 1 else ''}, interleaved with the dense encoder run by "
        f"spatile ({min(dense):.2f} to {max(dense):.2f} ms) and by PyTorch; "
        f"ratios of medians or of minima, whichever is less."
    )


def _compared(document: Mapping[str, Any], compared: list[Compared]) -> Table:
    metric = metric_name(document["metrics"][0])
    columns: list[tuple[str, Callable[[Compared], str]]] = [
        *_configuration_columns([c.configuration for c in compared], lambda c: c.configuration),
        ("methods", lambda c: f"{c.configuration.method} − {c.other}"),
        (f"{metric}, difference, 95 %", lambda c: _interval(c.difference)),
    ]
    return _table("Methods compared", columns, compared, ("Paired by seed and dev row; points.",))


def _configuration_columns(
    found: Sequence[Configuration],
    of: Callable[[Any], Configuration],
    *,
    gone: Callable[[Any], str] = lambda row: "",
) -> list[tuple[str, Callable[[Any], str]]]:
    """Columns for what is pruned, as far as anything is."""
    columns: list[tuple[str, Callable[[Any], str]]] = []
    if any(c.sparsity > 0 for c in found):
        columns += [
            ("pattern", lambda row: of(row).pattern if of(row).sparsity > 0 else ""),
            ("pruned", lambda row: _percent(of(row).sparsity) + gone(row)),
        ]
    if any((c.keep_tokens, c.keep_heads) != _ALL for c in found):
        columns += [
            ("tokens", lambda row: _percent(of(row).keep_tokens)),
            ("heads", lambda row: _percent(of(row).keep_heads)),
        ]
    return columns


def _table(
    title: str,
    columns: Sequence[tuple[str, Callable[[Any], str]]],
    rows: Sequence[Any],
    notes: tuple[str, ...],
) -> Table:
    heads = tuple(head for head, _ in columns)
    return Table(title, heads, tuple(tuple(cell(r) for _, cell in columns) for r in rows), notes)


def _even(even: Mapping[tuple[str, str], Summary | None], found: list[Summary]) -> Table:
    rows, shown = [], []
    timed = sorted(filter(may_break_even, found), key=lambda s: s.achieved)
    for (pattern, method), s in even.items():
        tried = [t for t in timed if (t.pattern, t.method) == (pattern, method)]
        at = tried[-1] if s is None else s
        sparsity = _percent(at.sparsity) + _gone(at)
        shown.append(at)
        if s is None:
            rows.append((pattern, method, f"nowhere (up to {sparsity})", "", ""))
            continue
        least = " (the lowest measured)" if s is tried[0] else ""
        rows.append((pattern, method, sparsity + least, _ratio(s.speedup), _signed(-s.loss.value)))
    return Table(
        "Break-even",
        ("pattern", "method", "faster than dense from", "dense / this", "points − dense there"),
        tuple(rows),
        (
            f"The lowest measured sparsity from which on the packed model does fewer operations "
            f"than spatile's dense and is at least {FASTER:g} times as fast.",
            *_what_sparsity_means(shown),
        ),
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
