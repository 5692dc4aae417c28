"""A report as one HTML file that needs nothing beside it and no network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spatile.report.plots import plots_of
from spatile.report.pruning import asked_for, pruning_lines
from spatile.report.tables import Table, tables_of
from spatile.sparsity import write_atomically

__all__ = ["render_html", "write_html", "write_page"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse } th, td { padding: .2rem .8rem .2rem 0; text-align: right }
th:first-child, td:first-child { text-align: left } th { border-bottom: 1px solid #999 }
td { border-bottom: 1px solid #eee } .note { color: #555; font-size: .9rem; margin: .2rem 0 }
.defect { color: #b00020; font-weight: 600 } figure { margin: 1.5rem 0 } svg { max-width: 100%;
  height: auto } figcaption { color: #555; font-size: .9rem } details { margin-top: 1rem }
h3 { font-size: 1rem; margin: 1.6rem 0 .2rem } .masks img { image-rendering: pixelated;
  border: 1px solid #ccc } .masks :is(th, td) { vertical-align: top; text-align: left;
  font-size: .8rem } .wide { overflow-x: auto }
"""
# A page of its own is as light or dark as its reader's others.
_PAGE_STYLE = """
:root { color-scheme: light dark } body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem;
  margin: 2rem auto; padding: 0 1rem } h1 { font-size: 1.2rem }
"""


def render_html(report: dict[str, Any], *, sections: Sequence[str] = ()) -> str:
    """The report as HTML with inlined plots; without matplotlib, a line instead of the plots.

    ``sections``: HTML that shows the model, of :func:`spatile.report.model_sections`.
    """
    data, settings = report["data"], report["settings"]
    title = f"spatile: {data['name']}, {asked_for(settings)}"
    scores, *rest = tables_of(report)
    parts = [
        f"<h1>{_e(title)}</h1>",
        f"<p>{data['train_rows']} train rows, {data['dev_rows']} dev rows; model "
        f"{_e(settings['model'])}; epochs "
        f"{settings['epochs_dense']:g} dense, {settings['epochs_reweighted']:g} reweighted, "
        f"{settings['epochs_retrain']:g} retrain; seed {settings['seed']}</p>",
        *(f"<p class='note'>{_e(note)}</p>" for note in data["notes"]),
        _table(scores),
        "<h2>The pruning</h2>",
        *(_sentence(line) for line in pruning_lines(report)),
        *(_table(table) for table in rest[:-1]),
        *_plots(report),
        *sections,
        _table(rest[-1]),
        "<details><summary>Settings</summary><table>",
        *(f"<tr><td>{_e(k)}</td><td>{_e(str(v))}</td></tr>" for k, v in settings.items()),
        "</table></details>",
    ]
    return _page(title, _STYLE, parts)


def _page(title: str, style: str, parts: Sequence[str]) -> str:
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{_e(title)}</title>"
        f"<style>{style}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def write_html(report: dict[str, Any], path: Path, *, sections: Sequence[str] = ()) -> None:
    """Write :func:`render_html` to ``path``, whole or not at all."""
    write_atomically(path, render_html(report, sections=sections).encode())


def write_page(path: Path, title: str, body: str) -> None:
    """Write a page that holds ``body``, a piece of HTML, below its title."""
    page = _page(title, _PAGE_STYLE, [f"<h1>{_e(title)}</h1>", body])
    write_atomically(path, page.encode())


def _e(text: str) -> str:
    return html.escape(text, quote=True)


def _sentence(line: str) -> str:
    kind = "defect" if line.startswith("DEFECT") else "note"
    return f"<p class='{kind}'>{_e(line)}</p>"


def _table(table: Table) -> str:
    def cells(tag: str, row: tuple[str, ...]) -> str:
        return "<tr>" + "".join(f"<{tag}>{_e(cell)}</{tag}>" for cell in row) + "</tr>"

    return (
        f"<h2>{_e(table.title)}</h2><table>{cells('th', table.heads)}"
        + "".join(cells("td", row) for row in table.rows)
        + "</table>"
        + "".join(f"<p class='note'>{_e(note)}</p>" for note in table.notes)
    )


def _plots(report: dict[str, Any]) -> list[str]:
    try:
        plots = plots_of(report)
    except ModuleNotFoundError as error:
        return [
            f"<p class='note'>No plots: {_e(str(error.name))} is not installed "
            f"(pip install &quot;spatile[report]&quot;)</p>"
        ]
    return [
        f"<figure>{svg}<figcaption>{_e(caption)}</figcaption></figure>" for caption, svg in plots
    ]
