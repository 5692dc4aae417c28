"""Rows of results: the best peer gets the target, the file holds what was measured so far."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from spatile.benchmarks.cases import Target
from spatile.sparsity import write_atomically

__all__ = ["Row", "with_target", "write_rows"]


@dataclass(frozen=True)
class Row:
    """Ours against one peer; the times are medians in milliseconds.

    ``ratio`` above 1 is better for us; of an at-most target (a share, an overhead) it is limit /
    value. ``target`` is the least ratio wanted, None on rows that no target names. ``met`` is None
    without a target, and where the ``interval`` of what was measured (a share, an overhead, or the
    ratio itself, each the median over rounds) holds the target.
    """

    case: str
    shape: str
    dtype: str
    tier: str
    threads: int
    ours_ms: float
    peer: str
    peer_ms: float
    ratio: float
    target: float | None = None
    met: bool | None = None
    interval: tuple[float, float] | None = None

    @property
    def title(self) -> str:
        """What was measured."""
        return f"{self.case}, {self.shape}, {self.dtype}"

    @property
    def verdict(self) -> str:
        """The target and whether it was met; empty without one."""
        if self.target is None:
            return ""
        return f"target {self.target:g}: {self.outcome}"

    @property
    def outcome(self) -> str:
        """Of a row with a target."""
        return "open" if self.met is None else "met" if self.met else "missed"


def with_target(rows: Sequence[Row], precisions: Sequence[str], target: Target | None) -> list[Row]:
    """The rows of one case, the target on the row of the best peer that it names.

    ``precisions`` are the rows' peers'. The best is the one with the least ratio: who passes it
    passes them all. On a tier that the target doesn't name no row gets it.
    """
    if target is None:
        return list(rows)
    named = [
        i
        for i, row in enumerate(rows)
        if target.holds_on(row.tier) and target.precision in (None, precisions[i])
    ]
    if not named:
        return list(rows)
    best = min(named, key=lambda i: rows[i].ratio)
    met = rows[best].ratio >= target.ratio
    return [
        replace(row, target=target.ratio, met=met) if i == best else row
        for i, row in enumerate(rows)
    ]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """The rows as a JSON list; the file is replaced whole or left as it was."""
    text = json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())
