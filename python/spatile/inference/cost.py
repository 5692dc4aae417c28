"""What a run cost: multiply-adds and bytes, layer by layer and part by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from spatile.inference.architecture import Architecture

__all__ = ["Amount", "Cost", "LayerCost", "Parts", "dense_parts"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Amount:
    """``bytes`` of weights, each read once a run, and of activations read and written."""

    multiply_adds: int = 0
    bytes: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.multiply_adds + other.multiply_adds, self.bytes + other.bytes)


@dataclass(frozen=True)
class Parts:
    """A layer's parts: the four projections, Q·Kᵀ, P·V, and the two matrices of the FFN."""

    projections: Amount = Amount()
    scores: Amount = Amount()
    values: Amount = Amount()
    ffn: Amount = Amount()

    @property
    def total(self) -> Amount:
        """All four."""
        return self.projections + self.scores + self.values + self.ffn

    def __add__(self, other: Parts) -> Parts:
        return Parts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class LayerCost:
    """One layer: what ran, and what the dense model would have done with the same inputs."""

    layer: int
    actual: Parts
    dense: Parts


@dataclass(frozen=True)
class Cost:
    """What one or several runs did, counted while they ran, beside the dense model's cost.

    ``layers`` are numbered as in the dense model; one that is cut out of the model costs nothing.
    Softmax, LayerNorm, GELU and the embeddings are in no part. The dense model is the unpruned one
    on all tokens and heads, in the same type, and as the run did it computes the last layer for the
    first token alone where nothing else was asked for. Costs add up with ``+``.
    """

    layers: tuple[LayerCost, ...]

    @property
    def actual(self) -> Amount:
        """What ran, over all layers."""
        return sum((layer.actual.total for layer in self.layers), Amount())

    @property
    def dense(self) -> Amount:
        """What the dense model would have done."""
        return sum((layer.dense.total for layer in self.layers), Amount())

    @property
    def reduction(self) -> float:
        """Dense multiply-adds over those that ran."""
        return self.dense.multiply_adds / max(1, self.actual.multiply_adds)

    def __add__(self, other: Cost) -> Cost:
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(
            tuple(
                LayerCost(a.layer, a.actual + b.actual, a.dense + b.dense)
                for a, b in zip(self.layers, other.layers, strict=True)
            )
        )

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        names = [f.name for f in fields(Parts)]
        lines = [f"{'layer':>5}  " + "  ".join(f"{n:>20}" for n in names) + f"  {'bytes':>21}"]
        for row in self.layers:
            cells = "  ".join(
                _ratio(getattr(row.actual, n).multiply_adds, getattr(row.dense, n).multiply_adds)
                for n in names
            )
            lines.append(
                f"{row.layer:>5}  {cells}  {_ratio(row.actual.total.bytes, row.dense.total.bytes)}"
            )
        actual, dense = self.actual, self.dense
        lines.append(
            f"{actual.multiply_adds / 1e6:.2f} M of {dense.multiply_adds / 1e6:.2f} M "
            f"multiply-adds ({self.reduction:.2f}x less), {actual.bytes / 2**20:.2f} of "
            f"{dense.bytes / 2**20:.2f} MiB"
        )
        return "\n".join(lines)


def _ratio(actual: int, dense: int) -> str:
    share = actual / dense if dense else 0.0
    return f"{actual / 1e6:8.3f} M {share:>8.1%} "


def parts_of(table: Array) -> Parts:
    """From what the engine counted: (parts, 2)."""
    return Parts(*(Amount(int(row[0]), int(row[1])) for row in table))


def dense_parts(
    a: Architecture, lengths: Sequence[int], *, first_only: bool, element: int
) -> Parts:
    """One layer of the dense model for inputs of these lengths; ``element`` bytes a number.

    With ``first_only`` the queries are the inputs' first tokens, and only they go on.
    """
    tokens, width, inner = sum(lengths), a.width, a.inner
    if tokens == 0:
        return Parts()
    queries = sum(n > 0 for n in lengths) if first_only else tokens
    pairs = sum(lengths) if first_only else sum(n * n for n in lengths)
    # Q is a product of its own where its tokens are others than K's and V's, and reads x again.
    inputs = queries + tokens if first_only else tokens
    attended = (tokens + queries) * width * element
    return Parts(
        Amount(
            2 * width * width * (queries + tokens),
            (4 * width**2 + width * (inputs + 2 * tokens + queries + 2 * queries)) * element,
        ),
        Amount(pairs * width, attended),
        Amount(pairs * width, attended),
        Amount(
            2 * width * inner * queries,
            (2 * width * inner + 2 * (width + inner) * queries) * element,
        ),
    )


def cost_of_run(
    a: Architecture,
    counted: Array,
    lengths: Sequence[int],
    *,
    first_only: bool,
    element: int,
) -> Cost:
    """``counted`` (layers that ran, parts, 2) beside the dense model's."""
    left = {kept.layer: i for i, kept in enumerate(a.structure.layers)}
    total = a.structure.n_layers
    usual = dense_parts(a, lengths, first_only=False, element=element)
    last = dense_parts(a, lengths, first_only=first_only, element=element)
    return Cost(
        tuple(
            LayerCost(
                layer,
                parts_of(counted[left[layer]]) if layer in left else Parts(),
                last if layer == total - 1 else usual,
            )
            for layer in range(total)
        )
    )
