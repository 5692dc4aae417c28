"""What a run kept of one input: which words and which heads each layer worked on, and the cost.

Source of the picture: SpAtten (HPCA 2021), whose authors strike out the pruned words layer by
layer.
"""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from spatile.inference.architecture import Architecture
from spatile.inference.explain_data import Explained, LayerView, Piece, Word
from spatile.inference.explain_html import html_of
from spatile.inference.explain_lines import JOINERS
from spatile.inference.explain_text import printable, text_of
from spatile.inference.head import Predictions
from spatile.inference.running import EncoderRun
from spatile.sparsity import Schedule

__all__ = ["Explanation", "LayerView", "Piece", "Word", "explanation_of"]


@dataclass(frozen=True, repr=False)
class Explanation(Explained):
    """What :meth:`Encoder.explain` returns; printed, the sentence layer by layer.

    Plain text in a pipe, struck out on a terminal (in colour, unless the variable NO_COLOR is set),
    a table in a notebook. ``tokens`` are the input's as the tokenizer spells them, ``layers`` those
    that run. ``truncated``: whether the text goes on where the model no longer reads.
    ``predictions``: of this one input, where the model has a head. ``token_schedule`` and
    ``head_schedule`` are the encoder's.
    """

    def to_text(self, *, colour: bool | None = None, width: int | None = None) -> str:
        """The sentence layer by layer.

        Parameters
        ----------
        colour : struck out by a terminal's escape codes, or "-word-" without any; default: escape
            codes where standard output is a terminal and NO_COLOR is not set
        width : columns that no line exceeds but for a word, or a layer's numbers, that alone do; a
            wide character counts as two. Default: the terminal's, or 100
        """
        if colour is None:
            colour = _is_terminal() and not os.environ.get("NO_COLOR")
        if width is None:
            width = shutil.get_terminal_size((100, 24)).columns if _is_terminal() else 100
        return text_of(self, colour=colour, width=width)

    def to_html(self) -> str:
        """The same as an HTML table that needs nothing beside it."""
        return html_of(self)

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        found = self.predictions
        return {
            "text": self.text,
            "pair": self.pair,
            "truncated": self.truncated,
            "label": None if found is None or found.labels is None else found.labels[0],
            "logits": None if found is None else [float(x) for x in found.logits[0]],
            "tokens": list(self.tokens),
            "words": [
                {
                    "text": word.text,
                    "positions": list(word.positions),
                    "special": word.special,
                    "segment": word.segment,
                }
                for word in self.words
            ],
            "layers": [
                {
                    "layer": view.layer,
                    "tokens": list(view.tokens),
                    "words": list(self.kept_words(i)),
                    "heads": list(view.heads),
                    "lacks": list(view.lacks),
                    "work": view.work,
                }
                for i, view in enumerate(self.layers)
            ],
            "n_heads": self.n_heads,
            "reduction": self.cost.reduction,
            "cost": self.cost.to_json(),
        }

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return self.to_html()


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def explanation_of(
    texts: tuple[str, str | None],
    encoding: Any,
    run: EncoderRun,
    a: Architecture,
    *,
    schedules: tuple[Schedule | None, Schedule | None],
    predictions: Predictions | None,
) -> Explanation:
    """From a text and its pair, ``tokenizers``' encoding of them, and the run.

    ``schedules``: of tokens, of heads.
    """
    work = {
        row.layer: row.actual.total.multiply_adds / max(1, row.dense.total.multiply_adds)
        for row in run.cost.layers
    }
    layers = [
        LayerView(
            layer=left.layer,
            tokens=tuple(run.kept.positions(i, 0).tolist()),
            heads=tuple(run.kept.heads[i, 0].nonzero()[0].tolist()),
            work=work[left.layer],
            lacks=tuple((~run.has_heads[i]).nonzero()[0].tolist()),
        )
        for i, left in enumerate(a.structure.layers)
    ]
    text, pair = texts
    return Explanation(
        text=text,
        pair=pair,
        tokens=tuple(encoding.tokens),
        words=tuple(_words(encoding, (text, pair or ""))),
        layers=tuple(layers),
        n_heads=a.n_heads,
        cost=run.cost,
        token_schedule=schedules[0],
        head_schedule=schedules[1],
        predictions=None if predictions is None else replace(predictions, cost=run.cost),
        truncated=bool(encoding.overflowing),
    )


# ---- from tokens to words -----------------------------------------------------------------------


def _words(encoding: Any, texts: tuple[str, str]) -> Iterator[Word]:
    """The input's words: pieces joined, spelled as in the text."""
    segments = [segment or 0 for segment in encoding.sequence_ids]
    names = [
        # A special token is a word of its own; so is a token that no word is known of.
        (segments[i], i, special or word is None)
        if special or word is None
        else (segments[i], word, False)
        for i, (word, special) in enumerate(
            zip(encoding.word_ids, encoding.special_tokens_mask, strict=True)
        )
    ]
    end = [0, 0]
    for group in _runs(names):
        segment, first = segments[group[0]], group[0]
        if encoding.special_tokens_mask[first]:
            yield Word((Piece(encoding.tokens[first], (first,)),), True, True, segment)
            continue
        source, begin = texts[segment], end[segment]
        pieces, end[segment] = _pieces(group, encoding.offsets, source, begin)
        start = max(begin, encoding.offsets[first][0])
        # Some tokenizers count the space before a word as part of it.
        space = source[begin:start] != "" or source[start : start + 1].isspace() or begin == 0
        yield Word(pieces, False, space, segment)


def _runs(names: Iterable[Any]) -> Iterator[list[int]]:
    """Places of equal neighbours."""
    run: list[int] = []
    before = None
    for i, name in enumerate(names):
        if run and name != before:
            yield run
            run = []
        run.append(i)
        before = name
    if run:
        yield run


def _pieces(
    group: list[int], offsets: list[tuple[int, int]], source: str, end: int
) -> tuple[tuple[Piece, ...], int]:
    """The pieces of one word, and where in the text it ends.

    Accents that the tokenizer took off stay with their letters.

    A token without characters of its own (a later byte of a character) goes with the one before it,
    or with the next where it is the first. A word in which nothing is seen is shown as "␣".
    """
    texts: list[str] = []
    positions: list[list[int]] = []
    for i in group:
        start, stop = max(end, offsets[i][0]), _with_marks(offsets, i, source)
        shown = source[start:stop].strip()
        if positions and (not shown or not texts[-1]):
            texts[-1] += shown
            positions[-1].append(i)
        else:
            texts.append(shown)
            positions.append([i])
        end = max(end, stop)
    unseen = not "".join(texts).strip(JOINERS)
    pieces = (
        Piece("␣" if unseen else printable(text), tuple(places))
        for text, places in zip(texts, positions, strict=True)
    )
    return tuple(pieces), end


def _with_marks(offsets: list[tuple[int, int]], i: int, source: str) -> int:
    """Where the text of token ``i`` ends, behind combining marks and joiners that no token has."""
    stop = offsets[i][1]
    # Special tokens are at (0, 0), and the pair's begin anew: no limit.
    following = offsets[i + 1][0] if i + 1 < len(offsets) else 0
    limit = following if following >= stop else len(source)
    while stop < limit and (
        source[stop] in JOINERS or unicodedata.category(source[stop]).startswith("M")
    ):
        stop += 1
    return stop
