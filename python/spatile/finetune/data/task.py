"""What training and evaluation see of a data set: :class:`Task` and its :class:`Examples`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["UNLABELLED", "Examples", "Kind", "Task"]

Kind = Literal["classification", "regression"]

#: The class index of a row without a label, which only a test split may hold (GLUE's are).
UNLABELLED = -1


@dataclass(frozen=True, eq=False)
class Examples:
    """The rows of one split, in file order.

    ``texts`` and ``pairs`` hold one string per row (``pairs`` is None for single sentences).
    ``labels`` is int64 (n,), an index into :attr:`Task.labels`, or float32 (n,) for regression.
    ``rows`` is int64 (n,): where each row stands in its source, as the line of a file (the first
    line is 1, a header counts) or as the index in a hub split (from 0).

    >>> import numpy as np
    >>> e = Examples(["a", "b", "c"], None, np.array([0, 1, 0]), np.array([2, 3, 4]))
    >>> len(e), e.select([2, 0]).texts
    (3, ['c', 'a'])
    """

    texts: list[str]
    pairs: list[str] | None
    labels: NDArray[Any]
    rows: NDArray[np.int64]

    def __post_init__(self) -> None:
        counts = {"pairs": self.pairs, "labels": self.labels, "rows": self.rows}
        for field, values in counts.items():
            if values is not None and len(values) != len(self.texts):
                raise ValueError(
                    f"Examples: {field} has {len(values)} rows, expected {len(self.texts)}"
                )

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, indices: Sequence[int] | NDArray[Any]) -> Examples:
        """The rows at these positions (from 0), in the order given."""
        index = np.asarray(indices, dtype=np.int64)
        return Examples(
            texts=[self.texts[i] for i in index],
            pairs=None if self.pairs is None else [self.pairs[i] for i in index],
            labels=self.labels[index],
            rows=self.rows[index],
        )

    def shuffled(self, seed: int = 0) -> Examples:
        """All rows in an order that depends on ``seed`` and the number of rows alone."""
        return self.select(np.random.default_rng(seed).permutation(len(self)))

    def take(self, n: int, seed: int = 0) -> Examples:
        """A random subset of ``n`` rows, in file order.

        Drawn without replacement and without regard to labels, by ``seed``: the same seed gives
        the same subset, and a smaller subset lies within a larger one. ValueError unless
        1 ≤ n ≤ len(self).
        """
        if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
            raise TypeError(f"take: n is {n!r}, expected an integer")
        if not 1 <= n <= len(self):
            raise ValueError(f"take: n is {n}, expected 1 to {len(self)}")
        return self.select(np.sort(np.random.default_rng(seed).permutation(len(self))[:n]))


@dataclass(frozen=True, eq=False)
class Task:
    """A data set ready for fine-tuning.

    ``labels`` names the classes in the order of the model's outputs (empty for regression);
    ``positive`` is the class that F1 is about (None unless there are two). ``metrics`` lists
    names of :data:`spatile.finetune.metrics.METRICS`, the primary one first. ``columns`` are the
    columns read: text, then its pair if any, then label. ``sources`` are the files or splits
    read, and ``notes`` say what was left out of them, for the report.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    positive: int | None
    metrics: tuple[str, ...]
    train: Examples
    dev: Examples
    test: Examples | None = None
    columns: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """Width of the classifier's output: the number of classes, or 1 for regression."""
        return len(self.labels) if self.kind == "classification" else 1

    @property
    def is_pair(self) -> bool:
        """Whether each example is a pair of texts."""
        return self.train.pairs is not None
