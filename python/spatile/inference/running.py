"""One call of the engine: what goes in, how much of it each layer keeps, what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spatile import _core
from spatile.inference.architecture import Architecture
from spatile.inference.batching import flatten
from spatile.inference.cost import Cost, cost_of_run
from spatile.ops.tokens import protected_mask
from spatile.sparsity import Schedule

__all__ = ["EncoderRun", "Kept", "Pruning", "check_schedules", "run_engine"]

Array = np.ndarray[Any, Any]
COST_PARTS = 4


@dataclass(frozen=True)
class Kept:
    """What each layer worked on, layers and heads numbered as they run and as in the dense model.

    ``counts`` (layers, n) tokens of each input; ``tokens`` each layer's tokens, as positions in
    their inputs, one input after the other; ``heads`` (layers, n, heads) whether a head was kept.
    """

    counts: Array
    tokens: tuple[Array, ...]
    heads: Array

    def positions(self, layer: int, i: int) -> Array:
        """Positions of the tokens of input ``i`` that ``layer`` worked on, ascending."""
        start = int(self.counts[layer, :i].sum())
        return np.asarray(self.tokens[layer][start : start + int(self.counts[layer, i])])


@dataclass(frozen=True)
class EncoderRun:
    """What :meth:`Encoder.run` returns.

    ``hidden`` (tokens, width) float32 of the tokens that the last layer kept, input i's being rows
    ``offsets[i]`` to ``offsets[i + 1]`` and ``positions`` (tokens) int32 their places in their
    inputs; with ``first_only`` (n, width): each input's first token alone.
    """

    hidden: Array
    offsets: Array
    positions: Array
    kept: Kept
    cost: Cost


@dataclass(frozen=True)
class Pruning:
    """The schedules of an encoder, and positions that it keeps besides the first."""

    tokens: Schedule | None = None
    heads: Schedule | None = None

    def token_counts(self, lengths: Array, n_layers: int, protected: Array | None) -> Array:
        """(layers, n): the schedule's, and never fewer than what is protected."""
        if self.tokens is None:
            return np.tile(lengths, (n_layers, 1))
        columns = [self.tokens.tokens(int(n), n_layers=n_layers) for n in lengths]
        counts = np.array(columns, np.int64).reshape(len(lengths), n_layers).T
        if protected is not None:
            counts = np.maximum(counts, protected)
        return np.ascontiguousarray(counts)

    def head_counts(self, lengths: Array, n_layers: int, n_heads: int) -> Array:
        """(layers, n): with how many heads each layer works on each input."""
        if self.heads is None:
            return np.full((n_layers, len(lengths)), n_heads, np.int64)
        columns = [
            self.heads.heads(n_heads, n_layers=n_layers, length=max(1, int(n))) for n in lengths
        ]
        counts = np.array(columns, np.int64).reshape(len(lengths), n_layers).T
        return np.ascontiguousarray(counts)


def check_schedules(tokens: Schedule | None, heads: Schedule | None, a: Architecture) -> None:
    """Raises ValueError for a schedule that the model's layers cannot follow."""
    for name, schedule in (("tokens", tokens), ("heads", heads)):
        if schedule is not None and not isinstance(schedule, Schedule):
            raise TypeError(
                f"Encoder: {name} is a {type(schedule).__name__}, expected a Schedule or None"
            )
    # By length it may still fail: then the input that it fails for is at hand.
    if tokens is not None:
        tokens.tokens(a.max_tokens, n_layers=a.n_layers)
    if heads is not None:
        heads.heads(a.n_heads, n_layers=a.n_layers, length=a.max_tokens)


def _positions(offsets: Array, lengths: Array) -> Array:
    """Each token's place in its input, int32."""
    within = np.arange(int(offsets[-1])) - np.repeat(offsets[:-1], lengths)
    return np.asarray(within, np.int32)


def _falls(counts: Array) -> bool:
    return len(counts) > 0 and bool((counts[-1] < counts[0]).any())


def _inputs(
    a: Architecture, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None
) -> tuple[Array, Array, Array, Array | None]:
    """Lengths, offsets, ids and types, packed."""
    lengths = np.fromiter((len(i) for i in ids), np.int64, len(ids))
    if len(lengths) and lengths.max() > a.max_tokens:
        raise ValueError(
            f"Encoder: an input has {lengths.max()} tokens, expected at most {a.max_tokens}"
        )
    flat_types = None
    if types is not None:
        if [len(row) for row in types] != lengths.tolist():
            raise ValueError("Encoder: types has other lengths than ids, expected the same")
        flat_types = flatten("types", types) if a.types > 1 else None
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return lengths, offsets, flatten("ids", ids), flat_types


def run_engine(
    engine: _core.Encoder,
    a: Architecture,
    pruning: Pruning,
    ids: Sequence[Sequence[int]],
    types: Sequence[Sequence[int]] | None,
    *,
    first_only: bool,
    protect: Any,
    element: int,
) -> EncoderRun:
    """One call. ``element``: bytes of a number in the products' type. Raises ValueError."""
    lengths, offsets, flat, flat_types = _inputs(a, ids, types)
    within = _positions(offsets, lengths)
    mask = None if protect is None else protected_mask("Encoder", protect, offsets)
    counted = None
    if mask is not None and len(flat):
        mask[offsets[:-1][lengths > 0]] = True
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(mask)])
        counted = sums[offsets[1:]] - sums[offsets[:-1]]
    tokens = pruning.token_counts(lengths, a.n_layers, counted)
    heads = pruning.head_counts(lengths, a.n_layers, a.n_heads)
    prunes = _falls(tokens) or _falls(heads)
    kept_tokens = np.empty(int(tokens.sum()) if prunes else 0, np.int32)
    kept_heads = np.empty((a.n_layers, len(ids), a.n_heads), bool)
    rows = tokens[-1] if prunes else lengths
    hidden = np.empty((len(ids) if first_only else int(rows.sum()), a.width), np.float32)
    cost = np.zeros((a.n_layers, COST_PARTS, 2), np.int64)
    engine.forward(
        offsets, flat, (within + a.position_offset).astype(np.int32), flat_types, first_only,
        hidden,
        (tokens, heads if _falls(heads) else None, mask, kept_tokens, kept_heads)
        if prunes else None,
        cost,
    )  # fmt: skip
    if prunes:
        ends = np.cumsum(tokens.sum(axis=1))[:-1]
        by_layer = tuple(within[part] for part in np.split(kept_tokens, ends))
    else:
        by_layer = (within,) * a.n_layers
        kept_heads[:] = True
    return EncoderRun(
        hidden,
        np.concatenate([np.zeros(1, np.int64), np.cumsum(rows)]),
        by_layer[-1] if by_layer else within,
        Kept(tokens, by_layer, kept_heads),
        cost_of_run(a, cost, lengths.tolist(), first_only=first_only, element=element),
    )
