"""The plots of a sweep as SVG texts. Needs matplotlib; touches no global state of pyplot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from spatile.report.plots import COLOURS, new_figure, svg_of
from spatile.sweep.summary import Summary, summarize
from spatile.sweep.tables import metric_name

__all__ = ["plot_names", "plots_of"]

_LINES = ("-", "--", "-.", ":")
_MARKS = "osD^v"


def plot_names(document: Mapping[str, Any]) -> tuple[str, ...]:
    """What the metric is drawn against."""
    rows = document["rows"]
    kept = any((row["keep_tokens"], row["keep_heads"]) != (1.0, 1.0) for row in rows)
    timed = any(row["latency_ms"] is not None for row in rows)
    if not rows:
        return ()
    return ("operations" if kept else "sparsity", *(("latency",) if timed else ()))


def plots_of(document: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, caption, SVG): the metric against sparsity or operations and, where timed, time.

    The majority class's score and the dense models' mean are lines in each. Raises
    ModuleNotFoundError without matplotlib.
    """
    found = summarize(document)
    metric = metric_name(document["metrics"][0])
    lines = "dashed the dense models, dotted the majority class"
    drawn = {
        "sparsity": ("at sparsity, with 95 % intervals", _against_sparsity),
        "operations": ("over operations, with 95 % intervals", _against_operations),
        "latency": ("over the time per example", _against_time),
    }
    return [
        (name, f"{metric} in points {drawn[name][0]}; {lines}", drawn[name][1](document, found))
        for name in plot_names(document)
    ]


def _against_sparsity(document: Mapping[str, Any], found: list[Summary]) -> str:
    figure = new_figure(8.0, 4.2)
    axes = figure.subplots()
    groups = list(_groups(found))
    step = min(0.5, 3.0 / len(groups))
    for i, (label, style, points) in enumerate(groups):
        # A little apart, so that intervals at the same sparsity don't cover each other.
        x = [100 * s.achieved + step * (i - (len(groups) - 1) / 2) for s in points]
        _with_intervals(axes, x, points, label, style)
    _levels(axes, document, found)
    axes.set_xlabel("% of the encoder's weights that are gone")
    return svg_of(figure)


def _against_operations(document: Mapping[str, Any], found: list[Summary]) -> str:
    figure = new_figure(8.0, 4.2)
    axes = figure.subplots()
    for label, style, points in _groups([s for s in found if s.operations is not None]):
        points = sorted(points, key=_share)
        _with_intervals(axes, [100 * _share(s) for s in points], points, label, style)
        for s in points:
            _annotate(axes, s, 100 * _share(s))
    _levels(axes, document, found)
    axes.set_xlim(left=0)
    axes.set_xlabel("% of the dense model's multiply-adds (numbers: % of tokens kept)")
    return svg_of(figure)


def _share(s: Summary) -> float:
    assert s.operations is not None
    return s.operations


def _with_intervals(
    axes: Any, x: list[float], points: list[Summary], label: str, style: dict[str, Any]
) -> None:
    y = [100 * s.mean.value for s in points]
    below = [100 * (s.mean.value - s.mean.low) for s in points]
    above = [100 * (s.mean.high - s.mean.value) for s in points]
    axes.errorbar(x, y, yerr=(below, above), capsize=2, elinewidth=0.8, label=label, **style)


def _annotate(axes: Any, s: Summary, x: float) -> None:
    kept = s.configuration.keep_tokens
    shown = f"{100 * s.achieved:.0f}" if s.sparsity > 0 and kept == 1 else f"{100 * kept:g}"
    where = {"xytext": (3, 3), "textcoords": "offset points", "fontsize": 7}
    axes.annotate(shown, (x, 100 * s.mean.value), **where)


def _against_time(document: Mapping[str, Any], found: list[Summary]) -> str:
    figure = new_figure(8.0, 4.2)
    axes = figure.subplots()
    timed = [s for s in found if s.speedup is not None]
    for label, style, points in _groups(timed):
        # Of its own dense model's: a busy minute slows both of those that were timed together.
        x = [100 / s.speedup for s in points if s.speedup is not None]
        y = [100 * s.mean.value for s in points]
        axes.plot(x, y, label=label, **style)
        for s, at in zip(points, x, strict=True):
            _annotate(axes, s, at)
    axes.axvline(100, color="#777777", linewidth=0.8, linestyle="-.", label="dense, time")
    _levels(axes, document, found)
    kept = any(s.configuration.keep_tokens < 1 for s in timed)
    numbers = "% of tokens kept" if kept else "% of the weights gone"
    axes.set_xlim(left=0)
    axes.set_xlabel(f"% of the dense model's time, one example at a time (numbers: {numbers})")
    return svg_of(figure)


def _groups(found: list[Summary]) -> Iterator[tuple[str, dict[str, Any], list[Summary]]]:
    """A line per pattern (or share of heads) and method: colours for the first, dashes for it."""
    lines = list(dict.fromkeys(_line(s) for s in found))
    methods = list(dict.fromkeys(s.method for s in found))
    for line in lines:
        for method in methods:
            points = [s for s in found if (_line(s), s.method) == (line, method)]
            if not points:
                continue
            i, j = lines.index(line), methods.index(method)
            style = {
                "color": COLOURS[i % len(COLOURS)],
                "linestyle": _LINES[j % len(_LINES)],
                "marker": _MARKS[i % len(_MARKS)],
                "markersize": 4,
                "linewidth": 1.2,
            }
            label = line if len(methods) == 1 else f"{line}, {method}"
            yield label, style, sorted(points, key=lambda s: (s.achieved, s.sparsity))


def _line(s: Summary) -> str:
    """Points of one line differ in sparsity, or in the tokens kept."""
    c = s.configuration
    if (c.keep_tokens, c.keep_heads) == (1.0, 1.0) and c.sparsity > 0:
        return c.pattern
    tiles = f", {c.pattern} {100 * c.sparsity:g} %" if c.sparsity > 0 else ""
    return f"heads {100 * c.keep_heads:g} %{tiles}"


def _levels(axes: Any, document: Mapping[str, Any], found: list[Summary]) -> None:
    metric = document["metrics"][0]
    axes.axhline(100 * found[0].dense, color="black", linewidth=0.9, linestyle="--", label="dense")
    floor = document["floor"][metric]
    if floor is not None:
        axes.axhline(
            100 * floor, color="black", linewidth=0.9, linestyle=":", label="majority class"
        )
    axes.set_ylabel(f"{metric_name(metric)}, points")
    axes.figure.legend(loc="outside right upper", frameon=False, fontsize=8)
