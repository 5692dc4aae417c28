"""The plots of a sweep as SVG texts. Needs matplotlib; touches no global state of pyplot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from spatile.report.plots import COLOURS, new_figure, svg_of
from spatile.sweep.summary import Summary, summarize
from spatile.sweep.tables import metric_name

__all__ = ["plots_of"]

_LINES = ("-", "--", "-.", ":")
_MARKS = "osD^v"


def plots_of(document: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, caption, SVG): the metric against sparsity and, where timed, against time.

    The majority class's score and the dense models' mean are lines in each. Raises
    ModuleNotFoundError without matplotlib.
    """
    found = summarize(document)
    if not found:
        return []
    metric = metric_name(document["metrics"][0])
    lines = "dashed the dense models, dotted the majority class"
    plots = [
        (
            "sparsity",
            f"{metric} in points at sparsity, with 95 % intervals; {lines}",
            _against_sparsity(document, found),
        )
    ]
    if any(s.latency_ms is not None for s in found):
        plots.append(
            (
                "latency",
                f"{metric} in points over milliseconds per example; {lines}",
                _against_time(document, found),
            )
        )
    return plots


def _against_sparsity(document: Mapping[str, Any], found: list[Summary]) -> str:
    figure = new_figure(8.0, 4.2)
    axes = figure.subplots()
    groups = list(_groups(found))
    step = min(0.5, 3.0 / len(groups))
    for i, (label, style, points) in enumerate(groups):
        # A little apart, so that intervals at the same sparsity don't cover each other.
        x = [100 * s.sparsity + step * (i - (len(groups) - 1) / 2) for s in points]
        y = [100 * s.mean.value for s in points]
        below = [100 * (s.mean.value - s.mean.low) for s in points]
        above = [100 * (s.mean.high - s.mean.value) for s in points]
        axes.errorbar(x, y, yerr=(below, above), capsize=2, elinewidth=0.8, label=label, **style)
    _levels(axes, document, found)
    axes.set_xlabel("% of the encoder's weights pruned")
    return svg_of(figure)


def _against_time(document: Mapping[str, Any], found: list[Summary]) -> str:
    figure = new_figure(8.0, 4.2)
    axes = figure.subplots()
    timed = [s for s in found if s.latency_ms is not None]
    for label, style, points in _groups(timed):
        x, y = [s.latency_ms for s in points], [100 * s.mean.value for s in points]
        axes.plot(x, y, label=label, **style)
        for s in points:
            axes.annotate(
                f"{100 * s.sparsity:g}",
                (s.latency_ms, 100 * s.mean.value),
                xytext=(3, 3),
                textcoords="offset points",
                fontsize=7,
            )
    dense = [s.dense_latency_ms for s in timed if s.dense_latency_ms is not None]
    if dense:
        middle = sorted(dense)[len(dense) // 2]
        axes.axvline(middle, color="#777777", linewidth=0.8, linestyle="-.", label="dense, time")
    _levels(axes, document, found)
    axes.set_xlabel("milliseconds per example, one at a time (numbers: % pruned)")
    return svg_of(figure)


def _groups(found: list[Summary]) -> Iterator[tuple[str, dict[str, Any], list[Summary]]]:
    """A line per pattern and method: the pattern gives the colour, the method the dashes."""
    patterns = list(dict.fromkeys(s.pattern for s in found))
    methods = list(dict.fromkeys(s.method for s in found))
    for pattern in patterns:
        for method in methods:
            points = [s for s in found if (s.pattern, s.method) == (pattern, method)]
            if not points:
                continue
            i, j = patterns.index(pattern), methods.index(method)
            style = {
                "color": COLOURS[i % len(COLOURS)],
                "linestyle": _LINES[j % len(_LINES)],
                "marker": _MARKS[i % len(_MARKS)],
                "markersize": 4,
                "linewidth": 1.2,
            }
            label = pattern if len(methods) == 1 else f"{pattern}, {method}"
            yield label, style, sorted(points, key=lambda s: s.sparsity)


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
