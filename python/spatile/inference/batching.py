"""Inputs in batches, and the batches' runs as one result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from spatile.inference.cost import Cost
from spatile.inference.running import EncoderRun
from spatile.ops.tokens import protected_mask

__all__ = ["Encoded", "batches", "encoded_of"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Encoded:
    """Hidden states of the tokens kept: input i is rows ``offsets[i]`` to ``offsets[i + 1]``.

    ``hidden`` (tokens, width), ``offsets`` (n + 1), ``pooled`` (n, width): the mean over an input's
    kept tokens or its first token, as the model says. ``positions`` (tokens) int32: each token's
    place in its input. ``cost``: what the layers did.
    """

    hidden: Array
    offsets: Array
    pooled: Array
    positions: Array
    cost: Cost

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> Array:
        if not -len(self) <= i < len(self):
            raise IndexError(f"input {i} of {len(self)}")
        i %= len(self)
        return np.asarray(self.hidden[self.offsets[i] : self.offsets[i + 1]])


def encoded_of(runs: Sequence[EncoderRun], pooling: str) -> Encoded:
    """Runs of batches, at least one, as one result."""
    hidden = np.concatenate([run.hidden for run in runs])
    lengths = np.concatenate([np.diff(run.offsets) for run in runs])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    # An input without tokens pools to zeros.
    pooled = np.zeros((len(lengths), hidden.shape[1]), np.float32)
    some = np.nonzero(lengths)[0]
    if pooling == "mean" and len(some):
        sums = np.add.reduceat(hidden, offsets[some], axis=0)
        pooled[some] = sums / lengths[some, None].astype(np.float32)
    else:
        pooled[some] = hidden[offsets[some]]
    positions = np.concatenate([run.positions for run in runs])
    cost = reduce(add, (run.cost for run in runs))
    return Encoded(hidden, offsets, pooled, positions, cost)


def batches(
    ids: Sequence[Sequence[int]], size: int, protect: Any | None
) -> Iterator[tuple[slice, Array | None]]:
    """``ids``' rows in slices of ``size``, each with its own part of what ``protect`` says.

    ``protect`` as in :meth:`Encoder.run`, of all rows. Raises ValueError for a size below 1 and for
    a position that a row does not have, TypeError for a ``protect`` of another dtype.
    """
    if size < 1:
        raise ValueError(f"Encoder: batch_size is {size}, expected at least 1")
    offsets = np.concatenate(
        [np.zeros(1, np.int64), np.cumsum([len(row) for row in ids], dtype=np.int64)]
    )
    mask = None if protect is None else protected_mask("Encoder", protect, offsets)
    slices = (slice(i, min(i + size, len(ids))) for i in range(0, len(ids), size))
    return (
        (rows, None if mask is None else mask[offsets[rows.start] : offsets[rows.stop]])
        for rows in slices
    )
