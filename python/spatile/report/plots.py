"""The plots of a report as SVG texts. Needs matplotlib; touches no global state of pyplot."""

from __future__ import annotations

import io
import re
from typing import Any

__all__ = ["COLOURS", "new_figure", "plots_of", "svg_of"]

_MOMENTS = {
    "reweighted_start": "before the reweighted stage",
    "before_prune": "after it, before pruning",
    "end": "after retraining",
}
#: Of series, in this order.
COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#8172b3", "#937860")


def plots_of(report: dict[str, Any]) -> list[tuple[str, str]]:
    """(caption, SVG) of each plot: scores by stage, group norms, times.

    Raises ModuleNotFoundError without matplotlib.
    """
    plots = [("Scores on dev after each stage, with 95 % intervals", _scores(report))]
    plots += _norms(report)
    if report["timing"] is not None:
        plots.append(("Milliseconds per example, median (bar) and minimum (line)", _times(report)))
    plots.append(("Share of weights pruned, per matrix", _sparsity(report)))
    return plots


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure of that size in inches, outside of pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def svg_of(figure: Any) -> str:
    """The figure as SVG text, the same for the same figure."""
    import matplotlib

    buffer = io.StringIO()
    # Text stays text, and ids don't change from run to run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "spatile"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return re.sub(r"^.*?(?=<svg)", "", svg, count=1, flags=re.DOTALL)


def _scores(report: dict[str, Any]) -> str:
    metrics, stages = report["data"]["metrics"], list(report["scores"])
    figure = new_figure(7.5, 3.2)
    axes = figure.subplots()
    for i, metric in enumerate(metrics):
        found = [(j, report["scores"][s][metric]) for j, s in enumerate(stages)]
        found = [(j, s) for j, s in found if s["value"] is not None]
        x = [j + (i - (len(metrics) - 1) / 2) * 0.12 for j, _ in found]
        y = [s["value"] for _, s in found]
        below = [s["value"] - s["low"] for _, s in found]
        above = [s["high"] - s["value"] for _, s in found]
        axes.errorbar(
            x, y, yerr=(below, above), fmt="o", capsize=3, label=metric, color=COLOURS[i % 5]
        )
        floor = report["floor"][metric]["value"]
        if floor is not None:
            axes.axhline(floor, color=COLOURS[i % 5], linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(stages)), [s.replace("lambda_zero", "λ = 0") for s in stages])
    axes.set_ylabel("score (dotted: majority class)")
    axes.legend(frameon=False)
    return svg_of(figure)


def _norms(report: dict[str, Any]) -> list[tuple[str, str]]:
    norms = report["pruning"]["norms"]
    moments = [m for m in _MOMENTS if m in norms]
    plots = []
    for pattern in norms[moments[0]]["counts"] if moments else ():
        figure = new_figure(7.5, 3.0)
        axes = figure.subplots()
        low, high = 1.0, -6.0
        for i, moment in enumerate(moments):
            summary = norms[moment]
            edges, counts = summary["log10_edges"], summary["counts"][pattern]
            filled = [j for j, count in enumerate(counts) if count]
            if filled:
                low, high = min(low, edges[filled[0]]), max(high, edges[filled[-1] + 1])
            zeros = summary["zeros"][pattern]
            label = _MOMENTS[moment] + (f" ({zeros} groups are zero)" if zeros else "")
            axes.stairs(counts, edges, label=label, color=COLOURS[i], fill=i == 0, alpha=0.8)
        axes.set_xlim(low, max(high, low + 0.5))
        axes.set_xlabel("log₁₀ of a group's root mean square weight")
        axes.set_ylabel("groups")
        axes.legend(frameon=False)
        plots.append((f"Group norms, pattern {pattern}", svg_of(figure)))
    return plots


def _times(report: dict[str, Any]) -> str:
    sizes = report["timing"]["sizes"]
    figure = new_figure(7.5, 1.8)
    for axes, size in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        times = size["milliseconds"]
        names = list(times)
        axes.barh(names, [times[n]["median"] for n in names], color=COLOURS[: len(names)])
        for i, name in enumerate(names):
            axes.plot([times[name]["min"]] * 2, [i - 0.4, i + 0.4], color="black", linewidth=1)
        axes.invert_yaxis()
        axes.set_title(f"batch size {size['batch_size']}", fontsize=9)
        axes.set_xlabel("ms per example")
    return svg_of(figure)


def _sparsity(report: dict[str, Any]) -> str:
    rows = report["summary"]["packed"]["matrices"]
    figure = new_figure(7.5, 0.6 + 0.17 * len(rows))
    axes = figure.subplots()
    axes.barh([r["name"] for r in rows], [r["sparsity"] for r in rows], color=COLOURS[0])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.tick_params(axis="y", labelsize=7)
    axes.margins(y=0.01)
    return svg_of(figure)
