"""Which heads an input loses before a layer, for models whose layers have different heads.

Source: SpAtten (HPCA 2021), cascade head pruning: what is dropped is gone from all later layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spatile.ops.tokens import kept_count

__all__ = ["HeadCascade"]

Array = np.ndarray[Any, Any]


@dataclass
class HeadCascade:
    """The heads that each input of a batch has left; the choice is the inference engine's.

    ``has`` (layers, heads) bool: the heads that have values in each layer, by their numbers in the
    dense model. ``keep`` (layers, inputs): with what fraction of the dense model's heads a layer
    works at most. ``alive`` (inputs, heads) bool: those that have not been dropped.
    """

    has: Array
    keep: Array
    alive: Array = field(init=False)
    _most: Array = field(init=False)
    _score: Array = field(init=False)

    def __post_init__(self) -> None:
        shape = self.keep.shape[1], self.has.shape[1]
        self.alive, self._score = np.ones(shape, bool), np.zeros(shape)
        self._most = kept_count(self.keep, shape[1])

    def losing(self, layer: int) -> Array:
        """(inputs,) bool: whether an input loses a head behind ``layer`` or a later one."""
        return np.asarray((self._left(layer + 1) > self._most[layer + 1 :].T).any(axis=1))

    def working(self, layer: int) -> Array:
        """(inputs, heads) bool: the heads that ``layer`` works with."""
        return np.asarray(self.alive & self.has[layer])

    def drop(self, layer: int, importance: Array) -> None:
        """Take what each head had in ``layer``, (inputs, heads) float64, and drop what goes.

        The next layer's heads go, the least important so far first and of equals the last, until it
        has as many as it is to work with. One that is the last that a later layer has left stays.
        Heads that the next layer does not have cost nothing in it: nothing is decided about them.

        Raises ValueError where the importance of heads to be ordered is NaN.
        """
        losing = self.losing(layer)
        self._score += importance
        score = self._score.astype(np.float32)
        if np.isnan(score[losing]).any():
            raise ValueError(
                f"HeadPruning: layer {layer}: the importance of heads is NaN, expected numbers "
                f"that can be ordered"
            )
        rows, following = np.arange(len(score)), self.has[layer + 1 :]
        # The last of equals comes first.
        order = score.shape[1] - 1 - np.argsort(score[:, ::-1], axis=1, kind="stable")
        for head in order.T:
            left = self._left(layer + 1)
            is_last = (following[:, head].T & (left == 1)).any(axis=1) & self.alive[rows, head]
            goes = losing & following[0, head] & (left[:, 0] > self._most[layer + 1]) & ~is_last
            self.alive[rows[goes], head[goes]] = False

    def _left(self, first: int) -> Array:
        """(inputs, layers from ``first`` on): how many of its heads an input has left in each."""
        return np.asarray(self.alive.astype(np.int64) @ self.has[first:].T.astype(np.int64))
