"""A report as plain text."""

from __future__ import annotations

from typing import Any

from spatile.report.pruning import asked_for, pruning_lines
from spatile.report.tables import Table, tables_of

__all__ = ["render_text", "table_text"]


def render_text(report: dict[str, Any]) -> str:
    """The whole report as text, lines of at most about 110 columns."""
    data, settings = report["data"], report["settings"]
    lines = [
        f"{data['name']}: {data['train_rows']} train rows, {data['dev_rows']} dev rows; "
        f"model {settings['model']}",
        f"{asked_for(settings)}; epochs "
        f"{settings['epochs_dense']:g} dense, {settings['epochs_reweighted']:g} reweighted, "
        f"{settings['epochs_retrain']:g} retrain; seed {settings['seed']}",
        *(f"note: {note}" for note in data["notes"]),
        "",
    ]
    first, *rest = tables_of(report)
    lines += [table_text(first), "", "The pruning"]
    lines += [f"  {line}" for line in pruning_lines(report)]
    for table in rest:
        lines += ["", table_text(table)]
    return "\n".join(lines) + "\n"


def table_text(table: Table) -> str:
    """A table with aligned columns: the first to the left, the others to the right."""
    rows = [table.heads, *table.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.heads))]
    lines = [table.title]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    lines += [f"  ({note})" for note in table.notes]
    return "\n".join(lines)
