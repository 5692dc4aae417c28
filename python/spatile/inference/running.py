"""One call of the engine: what goes in, how much of it each layer keeps, what comes out."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from spatile import _core
from spatile.inference.architecture import Architecture
from spatile.inference.cost import Cost, cost_of_run
from spatile.ops.tokens import protected_mask
from spatile.sparsity import Schedule

__all__ = ["EncoderRun", "Kept", "Pruning", "checked_schedules", "head_table", "run_engine"]

Array = np.ndarray[Any, Any]
COST_PARTS = 4


@dataclass(frozen=True)
class Kept:
    """What each layer worked on: layers as they run, heads numbered as in the dense model.

    ``counts`` (layers, n) tokens of each input; ``tokens`` each layer's tokens, as positions in
    their inputs, one input after the other; ``heads`` (layers, n, heads) whether a layer worked
    with a head of the dense model: not with one that was dropped before, nor with one that is cut
    out of the layer or has no values in it.
    """

    counts: Array
    tokens: tuple[Array, ...]
    heads: Array

    def positions(self, layer: int, i: int) -> Array:
        """Positions of the tokens of input ``i`` that ``layer`` worked on, ascending."""
        start = int(self.counts[layer, :i].sum())
        return np.asarray(self.tokens[layer][start : start + int(self.counts[layer, i])])


@dataclass(frozen=True)
class _Record:
    """What a run noted, before anybody asks for it: see :class:`Kept` and :class:`Cost`."""

    architecture: Architecture
    has_heads: Array
    lengths: Array
    within: Array
    counts: Array | None
    tokens: Array | None
    heads: Array | None
    cost: Array
    first_only: bool
    element: int


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
    _record: _Record = field(repr=False)

    @cached_property
    def kept(self) -> Kept:
        """The tokens and heads that each layer worked on."""
        r = self._record
        n_layers, n = r.architecture.n_layers, len(r.lengths)
        if r.counts is None or r.tokens is None or r.heads is None:
            heads = np.repeat(r.has_heads[:, None], n, axis=1)
            return Kept(np.tile(r.lengths, (n_layers, 1)), (r.within,) * n_layers, heads)
        ends = np.cumsum(r.counts.sum(axis=1))[:-1]
        parts = np.split(r.tokens, ends)
        return Kept(r.counts, tuple(r.within[part] for part in parts), r.heads)

    @property
    def has_heads(self) -> Array:
        """(layers, heads of the dense model) bool: those that have values in a layer."""
        return self._record.has_heads

    @cached_property
    def cost(self) -> Cost:
        """What the layers did."""
        r = self._record
        return cost_of_run(
            r.architecture,
            r.cost,
            r.lengths.tolist(),
            first_only=r.first_only,
            element=r.element,
        )


@dataclass(frozen=True)
class Pruning:
    """The schedules of an encoder."""

    tokens: Schedule | None = None
    heads: Schedule | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form. Raises TypeError, naming the schedule, for a function's."""
        stored = {}
        for name, schedule in (("tokens", self.tokens), ("heads", self.heads)):
            try:
                stored[name] = None if schedule is None else schedule.to_dict()
            except TypeError as error:
                raise TypeError(f"Encoder.save: {name}: {error}") from None
        return stored

    @classmethod
    def from_dict(cls, data: Any, *, source: str) -> Pruning:
        """Read what :meth:`to_dict` wrote, or None. Raises ValueError naming ``source``."""
        if data is None:  # written before schedules were
            return cls()
        if not isinstance(data, dict):
            raise ValueError(f"{source}: schedules is {data!r}, expected an object")
        tokens, heads = (
            None
            if data.get(name) is None
            else Schedule.from_dict(data[name], source=f"{source}: schedules.{name}")
            for name in ("tokens", "heads")
        )
        return cls(tokens, heads)

    def counts(
        self,
        a: Architecture,
        has_heads: Array,
        lengths: Array,
        offsets: Array,
        protected: Array | None,
    ) -> tuple[Array | None, Array | None]:
        """Tokens and heads (layers, n) of each layer; the first None where nothing is dropped, the
        second where no head is. First tokens join ``protected``, and all of them fit in.
        """
        tokens = heads = None
        n = len(lengths)
        if self.tokens is not None:
            columns = [self.tokens.tokens(x, n_layers=a.n_layers) for x in lengths.tolist()]
            tokens = np.array(columns, np.int64).reshape(n, a.n_layers).T
            if protected is not None:
                protected[offsets[:-1][lengths > 0]] = True
                sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(protected)])
                tokens = np.maximum(tokens, sums[offsets[1:]] - sums[offsets[:-1]])
        if self.heads is not None:
            columns = [
                self.heads.heads(a.n_heads, n_layers=a.n_layers, length=x) for x in lengths.tolist()
            ]
            heads = np.array(columns, np.int64).reshape(n, a.n_layers).T
            some_go = (heads < has_heads.sum(axis=1)[:, None]).any()
            heads = np.ascontiguousarray(heads) if some_go else None
        if heads is None and (tokens is None or not (tokens[-1:] < tokens[:1]).any()):
            return None, None
        if tokens is None:
            tokens = np.tile(lengths, (a.n_layers, 1))
        return np.ascontiguousarray(tokens), heads


def head_table(layers: Iterable[Iterable[int]], n_heads: int) -> Array:
    """(layers, heads) bool, from the numbers of the heads that each layer has.

    >>> head_table([(0, 2), (1,)], 3).tolist()
    [[True, False, True], [False, True, False]]
    """
    heads = [list(own) for own in layers]
    table = np.zeros((len(heads), n_heads), bool)
    for row, own in zip(table, heads, strict=True):
        row[own] = True
    return table


def checked_schedules(given: Pruning, a: Architecture) -> Pruning:
    """The same. Raises ValueError for a schedule that the model's layers cannot follow, TypeError
    for what is none.
    """
    tokens, heads = given.tokens, given.heads
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
    return given


def _positions(offsets: Array, lengths: Array) -> Array:
    """Each token's place in its input, int32."""
    if len(lengths) == 1:
        return np.arange(int(lengths[0]), dtype=np.int32)
    within = np.arange(int(offsets[-1])) - np.repeat(offsets[:-1], lengths)
    return np.asarray(within, np.int32)


def _flatten(arg: str, rows: Sequence[Sequence[int]]) -> Array:
    """All rows' integers in one int32 array. Raises TypeError or ValueError naming ``arg``."""
    outside = f"Encoder: {arg} holds a number outside [0, 2**31), as no table has"
    flat = array("q")  # takes integers alone, and in half of the time that NumPy takes
    try:
        for row in rows:
            flat.extend(row)
    except TypeError:
        found = next(type(v).__name__ for row in rows for v in row if not hasattr(v, "__index__"))
        raise TypeError(f"Encoder: {arg} holds {found}, expected integers") from None
    except OverflowError:
        raise ValueError(outside) from None
    values = np.frombuffer(flat, np.int64)
    if len(values) and (values.min() < 0 or values.max() > np.iinfo(np.int32).max):
        raise ValueError(outside)
    return values.astype(np.int32)


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
        flat_types = _flatten("types", types) if a.types > 1 else None
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return lengths, offsets, _flatten("ids", ids), flat_types


def run_engine(
    engine: _core.Encoder,
    a: Architecture,
    layer_heads: Sequence[Sequence[int]],
    pruning: Pruning,
    ids: Sequence[Sequence[int]],
    types: Sequence[Sequence[int]] | None,
    *,
    first_only: bool,
    protect: Any,
    element: int,
) -> EncoderRun:
    """One call. ``layer_heads``: which heads of the dense model each layer has.

    ``element``: bytes of a number in the products' type. Raises ValueError.
    """
    lengths, offsets, flat, flat_types = _inputs(a, ids, types)
    within, has_heads = _positions(offsets, lengths), head_table(layer_heads, a.n_heads)
    mask = None if protect is None else protected_mask("Encoder", protect, offsets)
    tokens, heads = pruning.counts(a, has_heads, lengths, offsets, mask)
    ends, kept_tokens, kept_heads = offsets, None, None
    if tokens is not None:
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(tokens[-1])])
        kept_tokens = np.empty(int(tokens.sum()), np.int32)
        kept_heads = np.empty((*tokens.shape, a.n_heads), bool)
    hidden = np.empty((len(ids) if first_only else int(ends[-1]), a.width), np.float32)
    cost = np.zeros((a.n_layers, COST_PARTS, 2), np.int64)
    engine.forward(
        offsets, flat, within + np.int32(a.position_offset), flat_types, first_only, hidden,
        None if tokens is None else (tokens, heads, mask, kept_tokens, kept_heads), cost,
    )  # fmt: skip
    positions = within
    if kept_tokens is not None:
        positions = within[kept_tokens[len(kept_tokens) - int(ends[-1]) :]]
    record = _Record(
        a, has_heads, lengths, within, tokens, kept_tokens, kept_heads, cost, first_only, element
    )
    return EncoderRun(hidden, ends, positions, record)
