"""What a run prints: a line for each row as it comes, and at the end which targets were met."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from spatile.benchmarks.table import Row

__all__ = ["heading", "line", "progress", "row_text", "summary"]

_CLEAR = "\r\x1b[K"
_OUTCOMES = ("met", "missed", "open")


def line(text: str) -> None:
    """One line on standard output, in place of the progress shown."""
    if sys.stderr.isatty():
        print(_CLEAR, end="", file=sys.stderr, flush=True)
    print(text, flush=True)


def progress(text: str) -> None:
    """What is being done right now, on a terminal; a log gets the lines alone."""
    if sys.stderr.isatty():
        print(f"{_CLEAR}{text[:100]} …", end="", file=sys.stderr, flush=True)


def heading(name: str, threads: int) -> str:
    """The head of one benchmark's table."""
    title = f"{name}, {_threads(threads)}"
    return f"{title:70} {'ours ms':>9} {'peer ms':>9} {'ratio':>7}  peer"


def row_text(row: Row, gflop_per_second: float | None = None) -> str:
    """One row; the speed is ours."""
    speed = "" if gflop_per_second is None else f"  [{gflop_per_second:.0f} GFLOP/s]"
    verdict = f"  ({row.verdict})" if row.verdict else ""
    return (
        f"{row.title:70} {row.ours_ms:9.4g} {row.peer_ms:9.4g} {row.ratio:7.2f}  "
        f"{row.peer}{verdict}{speed}"
    )


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """Which targets were met, missed, or left open by the noise, with figures."""
    aimed = [row for row in rows if row.target is not None]
    outcomes = {label: [r for r in aimed if r.outcome == label] for label in _OUTCOMES}
    counts = ", ".join(f"{len(chosen)} {label}" for label, chosen in outcomes.items())
    yield f"{len(rows)} rows, {len(aimed)} of them with a target: {counts}"
    for label, chosen in outcomes.items():
        for row in chosen:
            yield (
                f"  {label:6} {row.title}, {_threads(row.threads)}: {row.ratio:.4g} of "
                f"{row.target:g} ({row.ours_ms:.4g} ms, {row.peer} {row.peer_ms:.4g} ms)"
            )


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"
