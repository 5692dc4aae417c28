"""An explanation as an HTML table, for notebooks and pages, readable on light and on dark."""

from __future__ import annotations

import html

from spatile.inference.explain_data import Explained
from spatile.inference.explain_text import (
    Fate,
    cost_line,
    head_fates,
    head_lines,
    no_schedules,
    prediction_line,
    runs_of,
    work_line,
)

__all__ = ["html_of"]

# Colours are the page's own but for one, of medium lightness.
_STYLE = """
.spatile-explain{border-collapse:collapse;font-size:14px;color:inherit;background:none}
.spatile-explain :is(td,th){text-align:left;vertical-align:top;padding:3px 14px 3px 0;
border:0;border-top:1px solid #8886;background:none;color:inherit;white-space:nowrap}
.spatile-explain td:last-child{white-space:normal;line-height:1.5}
.spatile-explain tr{background:none}
.spatile-explain s{opacity:.5}
.spatile-explain s.just{opacity:1;color:#e0524f}
.spatile-explain s.head{text-decoration:none}
.spatile-explain i{font-style:normal;opacity:.6}
.spatile-explain b{display:inline-block;height:.6em;background:currentColor;opacity:.5}
"""


def html_of(e: Explained) -> str:
    """A table with a row for each layer, and what it cost below; no scripts, no addresses."""
    with_heads = e.head_schedule is not None
    titles = ["layer", "tokens", *(["heads"] if with_heads else []), "work", "words"]
    rows = [_row([f"<th>{t}</th>" for t in titles])]
    for i, view in enumerate(e.layers):
        cells = [str(view.layer), f"{len(view.tokens)} of {len(e.tokens)}"]
        if with_heads:
            cells.append(f"{_heads(e, i)} {len(view.heads)} of {e.n_heads}")
        width = max(1, round(60 * min(1.0, view.work)))
        cells.append(f"<b style='width:{width}px'></b> {100 * view.work:.0f}\u2009%")
        rows.append(_row([f"<td>{cell}</td>" for cell in [*cells, _words(e, i)]]))
    below = [*head_lines(e), cost_line(e)]
    unpruned = e.token_schedule is None and e.head_schedule is None
    below.insert(0, no_schedules() if unpruned else work_line())
    above = "" if e.predictions is None else _line(prediction_line(e.predictions))
    return (
        f"<div><style>{_STYLE}</style>{above}<table class='spatile-explain'>{''.join(rows)}</table>"
        + "".join(_line(line) for line in below)
        + "</div>"
    )


def _row(cells: list[str]) -> str:
    return f"<tr>{''.join(cells)}</tr>"


def _line(text: str) -> str:
    return f"<p style='margin:.3em 0'>{_e(text)}</p>"


def _e(text: str) -> str:
    return html.escape(text, quote=True)


def _words(e: Explained, layer: int) -> str:
    parts = []
    for n, word in enumerate(e.words):
        parts.append(" " if n and word.space else "")
        for text, fate in runs_of(word, e, layer):
            shown = f"<i>{_e(text)}</i>" if word.special else _e(text)
            if fate == Fate.JUST_DROPPED:
                shown = f"<s class='just'>{shown}</s>"
            elif fate == Fate.DROPPED_BEFORE:
                shown = f"<s>{shown}</s>"
            parts.append(shown)
    return "".join(parts) + (" …" if e.truncated else "")


def _heads(e: Explained, layer: int) -> str:
    """A square a head: full where it is kept; an x where the layer does not have it."""
    signs = {
        Fate.KEPT: "■",
        Fate.JUST_DROPPED: "<s class='head just'>□</s>",
        Fate.DROPPED_BEFORE: "<s class='head'>□</s>",
        Fate.LACKING: "<i>x</i>",
    }
    return "".join(signs[fate] for fate in head_fates(e, layer))
