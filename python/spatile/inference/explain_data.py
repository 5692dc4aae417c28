"""What an explanation says, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spatile.inference.cost import Cost
from spatile.inference.head import Predictions
from spatile.sparsity import Schedule

__all__ = ["Explained", "LayerView", "Piece", "Word"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Piece:
    """Part of a word that is dropped or kept at once: its text, and its tokens' ``positions``.

    It has several tokens where a character is spelled in bytes.
    """

    text: str
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Word:
    """A word as the text has it, or a special token by its name; ``space``: one stands before it.

    ``segment``: 0 for a word of the text, 1 for one of its pair.
    """

    pieces: tuple[Piece, ...]
    special: bool
    space: bool
    segment: int

    @property
    def text(self) -> str:
        """The whole word."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def positions(self) -> tuple[int, ...]:
        """The places of its tokens in the input."""
        return tuple(p for piece in self.pieces for p in piece.positions)


@dataclass(frozen=True)
class LayerView:
    """What one layer worked on. ``layer`` and ``heads`` are numbered as in the dense model.

    ``tokens``: positions in the input, ascending. ``work``: its multiply-adds over those of the
    dense model's layer. ``lacks``: heads of the dense model that the layer does not have: cut out
    of it, or without values.
    """

    layer: int
    tokens: tuple[int, ...]
    heads: tuple[int, ...]
    work: float
    lacks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Explained:
    """One input, and what each layer worked on; :class:`Explanation` draws it."""

    text: str
    pair: str | None
    tokens: tuple[str, ...]
    words: tuple[Word, ...]
    layers: tuple[LayerView, ...]
    n_heads: int
    cost: Cost
    token_schedule: Schedule | None = None
    head_schedule: Schedule | None = None
    predictions: Predictions | None = None
    truncated: bool = False

    @property
    def kept(self) -> Array:
        """(layers, tokens) bool: whether a layer worked on a token."""
        kept = np.zeros((len(self.layers), len(self.tokens)), bool)
        for row, view in zip(kept, self.layers, strict=True):
            row[list(view.tokens)] = True
        return kept

    @property
    def heads(self) -> Array:
        """(layers, heads) bool: whether a layer worked with a head of the dense model."""
        kept = np.zeros((len(self.layers), self.n_heads), bool)
        for row, view in zip(kept, self.layers, strict=True):
            row[list(view.heads)] = True
        return kept

    def kept_words(self, layer: int = -1) -> tuple[str, ...]:
        """The words of which the ``layer``-th that runs worked on any part, special ones left out.

        >>> from spatile.inference import Encoder                            # doctest: +SKIP
        >>> Encoder.load("RUN/packed").explain("A gorgeous movie.").kept_words()  # doctest: +SKIP
        ('gorgeous',)
        """
        there = set(self.layers[layer].tokens)
        return tuple(w.text for w in self.words if not w.special and there & set(w.positions))
