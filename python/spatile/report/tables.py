"""A report's tables as rows of strings, shared by the text and the HTML form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Table", "is_above_floor", "number", "percent", "signed", "tables_of"]

_STAGE_TITLES = {
    "pretrained": "pretrained (head untrained)",
    "dense": "dense",
    "lambda_zero": "λ = 0, pruned",
    "reweighted": "reweighted",
    "pruned": "pruned",
    "retrained": "retrained",
}


@dataclass(frozen=True)
class Table:
    """A title, the column heads, rows of cells, and notes below it."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def tables_of(report: dict[str, Any]) -> list[Table]:
    """All tables of a report, in the order they are read."""
    tables = [_scores(report), _cost(report)]
    if report["timing"] is not None:
        tables.append(_timing(report))
    tables.append(_matrices(report))
    return tables


def _scores(report: dict[str, Any]) -> Table:
    metrics = report["data"]["metrics"]
    rows = [("majority class", *(_score(report["floor"][m]) for m in metrics), "")]
    for stage, scores in report["scores"].items():
        difference = report["differences"].get(f"{stage} - dense")
        first = "" if difference is None else signed(difference[metrics[0]])
        rows.append((_STAGE_TITLES[stage], *(_score(scores[m]) for m in metrics), first))
    notes = [f"95 % intervals; n = {report['data']['dev_rows']} dev rows"]
    if report["lambda_zero"]:
        notes.append(report["lambda_zero"])
    verdict = _verdict(report)
    return Table(
        "Scores on dev after each stage",
        ("stage", *metrics, f"{metrics[0]} − dense"),
        tuple(rows),
        (*notes, verdict),
    )


def _verdict(report: dict[str, Any]) -> str:
    """Whether the pruned model beats the floor by more than its interval, in words."""
    metric = report["data"]["metrics"][0]
    above, floor = is_above_floor(report, "retrained", metric), report["floor"][metric]["value"]
    if above is None:
        return f"{metric} has no floor here to compare with"
    words = "is above" if above else "is NOT above"
    return (
        f"the interval of the retrained model's {metric} {words} the majority class's {floor:.3f}"
    )


def is_above_floor(report: dict[str, Any], stage: str, metric: str) -> bool | None:
    """Whether a stage's score is above the majority class's by more than its interval.

    None where there is no such score, or the stage's own is undefined.
    """
    low, floor = report["scores"][stage][metric]["low"], report["floor"][metric]["value"]
    return None if low is None or floor is None else bool(low > floor)


def _cost(report: dict[str, Any]) -> Table:
    sizes, work = report["sizes"], report["multiply_adds"]
    dense, packed = report["summary"]["dense"], report["summary"]["packed"]
    rows = (
        ("encoder matrices pruned", "0 %", f"{percent(packed['sparsity'])}", ""),
        _ratio("on disk, MB", sizes["dense checkpoint"] / 1e6, sizes["packed"] / 1e6),
        _ratio("encoder matrices as run, MB", dense["nbytes"] / 1e6, packed["nbytes"] / 1e6),
        _ratio("multiply-adds per dev example, M", work["dense"] / 1e6, work["packed"] / 1e6),
    )
    packed_agrees, dense_agrees = report["agreement"]["packed"], report["agreement"]["dense"]
    same = packed_agrees["same_predictions"]
    return Table(
        "What it costs to run",
        ("", "dense", "packed", "dense / packed"),
        rows,
        (
            f"packed logits agree with the trained model's in PyTorch within "
            f"{packed_agrees['max_difference']:.1e} (spatile dense: "
            f"{dense_agrees['max_difference']:.1e})"
            + ("" if same is None else f", predictions on {percent(same)} of dev rows"),
        ),
    )


def _timing(report: dict[str, Any]) -> Table:
    timing, environment = report["timing"], report["environment"]
    rows = []
    for size in timing["sizes"]:
        base = size["milliseconds"]["torch dense"]["median"]
        rows += [
            (
                f"batch {size['batch_size']}, {name}",
                f"{t['median']:.3f}",
                f"{t['min']:.3f}",
                f"{base / t['median']:.2f}×",
            )
            for name, t in size["milliseconds"].items()
        ]
    counts = ", ".join(f"{s['examples']} in batches of {s['batch_size']}" for s in timing["sizes"])
    return Table(
        "Milliseconds per example",
        ("", "median", "min", "torch dense / this"),
        tuple(rows),
        (
            f"{timing['what']}; dev examples: {counts}; {timing['rounds']} interleaved rounds, "
            f"float32",
            f"{timing['threads']} threads on {environment['processor']}; spatile "
            f"{environment['spatile']} tier {environment['tier']}, torch {environment['torch']}, "
            f"transformers {environment['transformers']}",
        ),
    )


def _matrices(report: dict[str, Any]) -> Table:
    rows = tuple(
        (
            row["name"],
            "×".join(str(n) for n in row["shape"]),
            row["pattern"],
            percent(row["sparsity"]),
            f"{row['bytes'] / 1e3:.0f}",
        )
        for row in report["summary"]["packed"]["matrices"]
    )
    return Table(
        "Sparsity per matrix",
        ("matrix", "out×in", "pattern", "pruned", "kB packed"),
        rows,
    )


def _score(score: dict[str, Any]) -> str:
    if score["value"] is None:
        return "undefined"
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def signed(score: dict[str, Any]) -> str:
    if score["value"] is None:
        return "undefined"
    return f"{score['value']:+.3f} [{score['low']:+.3f}, {score['high']:+.3f}]"


def _ratio(name: str, dense: float, packed: float) -> tuple[str, str, str, str]:
    return name, f"{dense:.2f}", f"{packed:.2f}", f"{dense / packed:.2f}×" if packed else ""


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
