"""Inputs of different lengths packed back to back, on the way in and on the way out."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from spatile.inference.cost import Cost
    from spatile.inference.running import EncoderRun

__all__ = ["Encoded", "batches", "encoded_of", "flatten"]

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


def flatten(arg: str, rows: Sequence[Sequence[int]]) -> Array:
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


def batches(count: int, size: int) -> Iterable[slice]:
    """``count`` rows in slices of ``size``. Raises ValueError for a size below 1."""
    if size < 1:
        raise ValueError(f"Encoder: batch_size is {size}, expected at least 1")
    return (slice(i, min(i + size, count)) for i in range(0, count, size))
