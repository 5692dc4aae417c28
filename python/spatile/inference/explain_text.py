"""An explanation as text: plain, or struck out by a terminal's escape codes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum

from spatile.inference.explain_data import Explained, Word
from spatile.inference.explain_lines import JOINERS, Parting, Span, filled, words_of
from spatile.inference.head import Predictions

__all__ = [
    "Fate",
    "cost_line",
    "fates",
    "head_fates",
    "head_lines",
    "no_schedules",
    "prediction_line",
    "printable",
    "text_of",
    "work_line",
]

# Struck out: red where it has just gone, dim where it went before.
_JUST, _BEFORE, _DIM = "\x1b[9;31m", "\x1b[2;9m", "\x1b[2m"
_LEAST_WIDTH = 24
_HANG = 2


class Fate(IntEnum):
    """What has become of a token or a head when a layer runs."""

    KEPT = 0
    JUST_DROPPED = 1
    DROPPED_BEFORE = 2
    LACKING = 3


Run = tuple[str, Fate]
"""Neighbouring text of one fate."""


def fates(places: Iterable[int], kept: Sequence[Iterable[int]], layer: int) -> list[Fate]:
    """Of each of ``places``, by what each layer ``kept``; dropped just now: the last layer had it.

    >>> [fate.name for fate in fates(range(3), [(0, 1, 2), (0, 1), (1,)], 2)]
    ['JUST_DROPPED', 'KEPT', 'DROPPED_BEFORE']
    """
    now, before = set(kept[layer]), set(kept[max(0, layer - 1)])
    return [
        Fate.KEPT if p in now else Fate.JUST_DROPPED if p in before else Fate.DROPPED_BEFORE
        for p in places
    ]


def head_fates(e: Explained, layer: int) -> list[Fate]:
    """Of each head of the dense model, where layers may lack some.

    Dropped just now: the last layer that has it worked with it, or none has it before this one.
    """
    return [_head_fate(e, layer, head) for head in range(e.n_heads)]


def _head_fate(e: Explained, layer: int, head: int) -> Fate:
    view = e.layers[layer]
    if head in view.lacks:
        return Fate.LACKING
    if head in view.heads:
        return Fate.KEPT
    before = next((v for v in reversed(e.layers[:layer]) if head not in v.lacks), None)
    return Fate.JUST_DROPPED if before is None or head in before.heads else Fate.DROPPED_BEFORE


def runs_of(word: Word, e: Explained, layer: int) -> list[Run]:
    """A word's pieces as a layer has them: a piece is there while any of its tokens is."""
    kept = [view.tokens for view in e.layers]
    runs: list[Run] = []
    for piece in word.pieces:
        fate = min(fates(piece.positions, kept, layer))
        if runs and runs[-1][1] == fate:
            runs[-1] = (runs[-1][0] + piece.text, fate)
        else:
            runs.append((piece.text, fate))
    return runs


def text_of(e: Explained, *, colour: bool, width: int) -> str:
    """The whole picture, lines of at most ``width`` columns where words allow it."""
    lines = []
    if e.predictions is not None:
        lines += filled(words_of(prediction_line(e.predictions)), width, hang=_HANG)
    with_heads = e.head_schedule is not None
    n_tokens = len(str(len(e.tokens)))
    heads = f"  {'heads':<{e.n_heads + 1 + 2 * len(str(e.n_heads)) + 1}}" if with_heads else ""
    head = f"layer  {'tokens':>{max(6, 2 * n_tokens + 1)}}{heads}  work  "
    indent = len(head)
    # Where columns leave no room for words, words go below them.
    below = width - indent < _LEAST_WIDTH
    lines.append(head.rstrip())
    for i, view in enumerate(e.layers):
        counts = f"{len(view.tokens):>{n_tokens}}/{len(e.tokens)}"
        left = f"{view.layer:>5}  {counts:>{max(6, 2 * n_tokens + 1)}}"
        if with_heads:
            barcode = _barcode(e, i)
            left += f"  {barcode} {len(view.heads):>{len(str(e.n_heads))}}/{e.n_heads}"
        left = f"{left}  {_percent(view.work):>4}  "
        start = 4 if below else indent
        rows = filled(_plain(e, i) if not colour else _coloured(e, i), max(8, width - start))
        if below:
            lines.append(left.rstrip())
            lines += [" " * start + row for row in rows]
        else:
            lines += [(left if j == 0 else " " * start) + row for j, row in enumerate(rows)]
    for below_all in (*_legend(e, colour), *map(words_of, (*head_lines(e), cost_line(e)))):
        lines += filled(below_all, width, hang=_HANG)
    return "\n".join(line.rstrip() for line in lines)


def _plain(e: Explained, layer: int) -> Iterator[Span]:
    """What has just gone is "-word-", what went before a dot.

    Words that the text does not separate are not separated while both are kept, nor are dots.
    """
    before = None
    for word in e.words:
        runs = runs_of(word, e, layer)
        first, parting = runs[0][1], Parting.SPACE
        if before == first == Fate.KEPT and not word.space:
            parting = Parting.NONE
        elif before == first == Fate.DROPPED_BEFORE and len(runs) == 1:
            parting = Parting.BREAK
        for text, fate in runs:
            yield parting, _marked(text, fate), ""
            parting, before = Parting.NONE, fate
    if e.truncated:
        yield Parting.NONE, " …", ""


def _marked(text: str, fate: Fate) -> str:
    return {Fate.KEPT: text, Fate.JUST_DROPPED: f"-{text}-", Fate.DROPPED_BEFORE: "·"}[fate]


def _coloured(e: Explained, layer: int) -> Iterator[Span]:
    """The same, with the words in their places, struck out."""
    for word in e.words:
        parting = Parting.SPACE if word.space else Parting.NONE
        for text, fate in runs_of(word, e, layer):
            code = {Fate.KEPT: _DIM if word.special else "", Fate.JUST_DROPPED: _JUST}.get(
                fate, _BEFORE
            )
            yield parting, text, code
            parting = Parting.NONE
    if e.truncated:
        yield Parting.NONE, " …", ""


def _barcode(e: Explained, layer: int) -> str:
    """A character a head: "|" kept, "-" dropped just now, "·" before, "x" not in the layer."""
    return "".join("|-·x"[fate] for fate in head_fates(e, layer))


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _legend(e: Explained, colour: bool) -> list[Iterable[Span]]:
    if e.token_schedule is None and e.head_schedule is None:
        return [words_of(no_schedules())]
    how: Iterable[Span] = words_of("-word- is dropped before this layer, each · was earlier")
    if colour:
        how = [
            (Parting.NONE, "just dropped", _JUST),
            (Parting.NONE, ",", ""),
            (Parting.SPACE, "dropped before", _BEFORE),
        ]
    return [how, words_of(work_line())]


def work_line() -> str:
    """Why a layer that sees all tokens does less than all of the work."""
    return "work: share of the dense layer's; its FFN leaves out what the next layer drops"


def no_schedules() -> str:
    """What is said where nothing could be dropped."""
    return "no schedules: every layer works on all words and heads"


def head_lines(e: Explained) -> list[str]:
    """Which heads are dropped where, and whether layers lack some; none where nothing is."""
    if e.head_schedule is None:
        return []
    found = []
    for i, view in enumerate(e.layers):
        gone = [h for h, fate in enumerate(head_fates(e, i)) if fate == Fate.JUST_DROPPED]
        if gone:
            found.append(f"{', '.join(map(str, gone))} before layer {view.layer}")
    lines = [f"heads dropped: {'; '.join(found)}"] if found else []
    if any(view.lacks for view in e.layers):
        lines.append("heads marked x: the layer does not have them")
    return lines


def cost_line(e: Explained) -> str:
    """Multiply-adds, beside the dense model's."""
    actual, dense = e.cost.actual.multiply_adds, e.cost.dense.multiply_adds
    return (
        f"{actual / 1e6:.2f} M of {dense / 1e6:.2f} M multiply-adds in the layers: "
        f"{e.cost.reduction:.2f}x less"
    )


def prediction_line(found: Predictions) -> str:
    """The label and its probability, or the value."""
    if found.labels is None or found.probabilities is None:
        return f"prediction: {found.logits[0, 0]:.4f}"
    return f"prediction: {printable(found.labels[0])} ({found.probabilities[0].max():.3f})"


def printable(text: str) -> str:
    """What a terminal may be given: no control characters, but those that join letters or do not.

    >>> printable("a\\tb")
    'a\ufffdb'
    """
    return "".join(c if c.isprintable() or c in JOINERS else "\ufffd" for c in text)
