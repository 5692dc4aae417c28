"""One run of an encoder while tokens and heads leave it: what is left, and what goes next.

Source: SpAtten (HPCA 2021), cascade token and head pruning. The choice is the inference engine's:
importance of a layer counts from that layer on, [CLS] stays, padding counts nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from spatile import ops
from spatile.inference.running import Kept
from spatile.ops.tokens import kept_count, protected_mask
from spatile.sparsity import Schedule
from spatile.torch.cascade_heads import HeadCascade

__all__ = ["CascadePass", "Fractions"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Fractions:
    """A schedule on its way: at ``progress`` p a layer keeps 1 − p·(1 − k) instead of k."""

    schedule: Schedule
    progress: float = 1.0
    protect: tuple[int, ...] = ()

    def of(self, n_layers: int, *, unit: Any, lengths: Array) -> Array:
        """(layers, inputs) float64, for inputs of these lengths in tokens."""
        rows = {}
        for length in set(lengths.tolist()):
            keep = self.schedule.keep(n_layers, unit=unit, length=length)
            if self.progress < 1.0:
                keep = tuple(1.0 - self.progress * (1.0 - k) for k in keep)
            rows[length] = keep
        return np.array([rows[n] for n in lengths.tolist()]).reshape(len(lengths), n_layers).T


def _offsets(counts: Array) -> Array:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _is_first(counts: Array, width: int) -> Array:
    """(inputs, width) bool: the first ``counts`` of each row."""
    return np.asarray(np.arange(width) < counts[:, None])


@dataclass
class _Tokens:
    """``keep`` (layers, inputs); ``position`` in the input and ``score`` (inputs, width) so far.

    Of a row only as many as the input has tokens left are some. ``last``: the last layer that works
    on fewer than the one before. ``left`` (inputs,): how many tokens the model's last layer has.
    """

    keep: Array
    protect: tuple[int, ...]
    last: int
    left: Array
    position: Array
    score: Array


@dataclass
class CascadePass:
    """Made when a batch enters the model; ``lengths`` (inputs,) are its valid tokens.

    ``layer_heads``: the heads that each layer has, by their numbers in the dense model;
    ``has_heads`` (layers, heads of the dense model) bool: those of them that have values.
    """

    lengths: Array
    width: int
    layer_heads: list[tuple[int, ...]]
    has_heads: Array
    counts: Array = field(init=False)
    _tokens: _Tokens | None = field(init=False, default=None)
    _heads: HeadCascade | None = field(init=False, default=None)
    _places: list[Array] = field(init=False)
    _kept: list[Array] = field(init=False)  # heads, of the layers so far in which some may be gone

    def __post_init__(self) -> None:
        self.counts = self.lengths
        self._places, self._kept = [_is_first(self.lengths, self.width)], []

    def plan(self, tokens: Fractions | None, heads: Fractions | None) -> None:
        """Find out which layers lose something. Raises ValueError as :meth:`Schedule.keep`."""
        n_layers, lengths = len(self.layer_heads), self.lengths
        if tokens is not None:
            keep = tokens.of(n_layers, unit="tokens", lengths=lengths)
            least = np.minimum(lengths, 1)
            if tokens.protect:
                ends = _offsets(lengths)
                sums = _offsets(self._protected(tokens.protect, ends))
                least = sums[ends[1:]] - sums[ends[:-1]]
            counts = np.maximum(kept_count(keep, lengths), least)
            position = np.tile(np.arange(self.width), (len(lengths), 1))
            score = np.zeros(position.shape)
            self._tokens = _Tokens(
                keep, tokens.protect, _last_loss(counts), counts[-1], position, score
            )
        if heads is not None:
            keep = heads.of(n_layers, unit="heads", lengths=lengths)
            keep[:, lengths == 0] = 1.0  # without tokens nothing is known of heads
            self._heads = HeadCascade(self.has_heads, keep)

    @property
    def whole(self) -> Array:
        """(inputs, sequence) bool: the tokens that came in."""
        return self._places[0]

    @property
    def loses(self) -> bool:
        """Whether anything goes in any layer."""
        return self.needs_tokens(0) or self.needs_heads(0)

    def needs_tokens(self, layer: int) -> bool:
        """Whether the layer's importance of tokens decides anything."""
        return self._tokens is not None and layer < self._tokens.last

    def needs_heads(self, layer: int) -> bool:
        """Whether the layer's importance of heads decides anything."""
        return self._heads is not None and bool(self._heads.losing(layer).any())

    def heads_of(self, layer: int) -> Array:
        """(inputs, heads that the layer has) bool: which of them an input still has."""
        own = list(self.layer_heads[layer])
        if self._heads is None:
            return np.ones((len(self.lengths), len(own)), bool)
        return np.asarray(self._heads.alive[:, own])

    # ---- behind each attention ------------------------------------------------------------------

    def after_attention(
        self, layer: int, tokens: torch.Tensor | None, heads: torch.Tensor | None
    ) -> Array | None:
        """Take a layer's importance, (inputs, width) and (inputs, heads), and drop what goes.

        Returns None where every token stays, else (inputs, new width) int64: the rows, of the
        flattened (inputs · width), that stay. A row of an input that has fewer is its first.
        """
        rows = None
        if self._heads is not None:
            self._kept.append(self._heads.working(layer))
        if tokens is not None:
            rows = self._drop_tokens(layer, tokens.cpu().double().numpy())
        if heads is not None:
            assert self._heads is not None
            scores = np.zeros(self._heads.alive.shape)
            scores[:, list(self.layer_heads[layer])] = heads.cpu().double().numpy()
            self._heads.drop(layer, scores)
        self._places.append(self._places[-1] if rows is None else self._find_places())
        return rows

    def _drop_tokens(self, layer: int, importance: Array) -> Array | None:
        t = self._tokens
        assert t is not None
        t.score += importance
        width, ends = t.position.shape[1], _offsets(self.counts)
        valid = _is_first(self.counts, width)
        packed = t.score[valid].astype(np.float32)
        # An input that keeps what it has has nothing to order: its NaN is the model's output's.
        packed[np.repeat(self.counts == t.left, self.counts)] = 0.0
        _check_order(layer, packed)
        protect = None
        if t.protect:
            starts = _offsets(self.lengths)
            sure = self._protected(t.protect, starts)
            protect = sure[(starts[:-1, None] + t.position)[valid]]
        found = ops.select_tokens(
            packed, t.keep[layer + 1], offsets=ends, protect=protect, lengths=self.lengths
        )
        counts = np.diff(found.offsets)
        if (counts == self.counts).all():
            return None
        local = np.zeros((len(counts), int(counts.max())), np.int64)
        local[_is_first(counts, local.shape[1])] = found.index - np.repeat(ends[:-1], counts)
        t.position = np.take_along_axis(t.position, local, axis=1)
        t.score = np.take_along_axis(t.score, local, axis=1)
        self.counts = counts
        return np.asarray(local + width * np.arange(len(counts))[:, None])

    def _protected(self, positions: tuple[int, ...], offsets: Array) -> Array:
        sure = protected_mask("TokenPruning", positions, offsets)
        sure[offsets[:-1][self.lengths > 0]] = True
        return sure

    # ---- what was kept --------------------------------------------------------------------------

    def _find_places(self) -> Array:
        assert self._tokens is not None
        position = self._tokens.position
        places = np.zeros((len(position), self.width), bool)
        valid = _is_first(self.counts, position.shape[1])
        places[np.nonzero(valid)[0], position[valid]] = True
        return places

    def masks(self) -> list[Array]:
        """(inputs, sequence) bool of each layer's output: the tokens that it holds."""
        return self._all(self._places)[1:]

    def kept(self) -> Kept:
        """What each layer worked on, as the inference engine says it."""
        places = self._all(self._places)[:-1]
        heads = np.repeat(self.has_heads[:, None], len(self.lengths), axis=1)
        if self._kept:
            heads[: len(self._kept)] = self._kept
        return Kept(
            np.array([p.sum(axis=1) for p in places], np.int64),
            tuple(np.nonzero(p)[1].astype(np.int32) for p in places),
            heads,
        )

    def _all(self, noted: list[Array]) -> list[Array]:
        """Before and behind all layers, also where no layer had anything to note."""
        return noted + noted[-1:] * (len(self.layer_heads) + 1 - len(noted))


def _last_loss(counts: Array) -> int:
    """The last layer that works on less than the one before; 0 where there is none."""
    falls = np.nonzero((np.diff(counts, axis=0) < 0).any(axis=1))[0]
    return int(falls[-1]) + 1 if len(falls) else 0


def _check_order(layer: int, scores: Array) -> None:
    if np.isnan(scores).any():
        raise ValueError(
            f"TokenPruning: layer {layer}: the importance of tokens is NaN, expected numbers that "
            f"can be ordered"
        )
