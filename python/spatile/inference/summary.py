"""What a compiled encoder holds and costs, as a table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["LayerSizes", "LayerSummary", "MatrixSummary", "Summary"]


@dataclass(frozen=True)
class MatrixSummary:
    """One matrix of the checkpoint. ``bytes``: of the kept weights, as float32."""

    name: str
    shape: tuple[int, int]
    pattern: str
    sparsity: float
    bytes: int


@dataclass(frozen=True)
class LayerSummary:
    """What runs of one layer: ``layer`` is its place in the dense model."""

    layer: int
    heads: int
    neurons: int


@dataclass(frozen=True)
class LayerSizes:
    """How many layers the dense model has, and how many heads and neurons each."""

    layers: int
    heads: int
    neurons: int


@dataclass(frozen=True)
class Summary:
    """Matrices as pruned, and multiply-adds of the products as compiled.

    ``multiply_adds_per_token`` counts the linear layers alone; ``Encoder.multiply_adds`` adds
    attention's, which grow with the square of the length. ``nbytes`` is all packed weights of the
    layers with their index, without the embeddings.
    """

    matrices: tuple[MatrixSummary, ...]
    layers: tuple[LayerSummary, ...]
    dense_layers: LayerSizes
    multiply_adds_per_token: int
    dense_multiply_adds_per_token: int
    nbytes: int
    merged_layers: tuple[int, ...]

    @property
    def sparsity(self) -> float:
        """The fraction of the dense model's weights, in the layers' matrices, that is pruned."""
        kept = sum((1.0 - m.sparsity) * int(np.prod(m.shape)) for m in self.matrices)
        total = self.dense_multiply_adds_per_token  # each weight is multiplied once
        return 1.0 - kept / total if total else 0.0

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {**asdict(self), "sparsity": self.sparsity}

    def __str__(self) -> str:
        width = max((len(m.name) for m in self.matrices), default=6)
        lines = [f"{'matrix':<{width}}  {'shape':>11}  {'pattern':<11}  pruned    KiB"]
        lines += [
            f"{m.name:<{width}}  {m.shape[0]:>5}x{m.shape[1]:<5}  {m.pattern:<11}  "
            f"{m.sparsity:6.1%}  {m.bytes / 1024:5.0f}"
            for m in self.matrices
        ]
        lines += self._structure_lines()
        ratio = self.multiply_adds_per_token / max(1, self.dense_multiply_adds_per_token)
        lines.append(
            f"{self.sparsity:.1%} of the weights pruned; "
            f"{self.multiply_adds_per_token / 1e6:.2f} M multiply-adds a token, {ratio:.1%} of "
            f"dense; {self.nbytes / 2**20:.1f} MiB packed"
        )
        return "\n".join(lines)

    def _structure_lines(self) -> list[str]:
        """What is left of layers, heads and neurons, where something is missing."""
        dense = self.dense_layers
        whole = all((m.heads, m.neurons) == (dense.heads, dense.neurons) for m in self.layers)
        if whole and len(self.layers) == dense.layers:
            return []
        lines = [f"{'layer':>5}  {'heads':>9}  {'neurons':>13}"]
        lines += [
            f"{m.layer:>5}  {m.heads:>3} of {dense.heads:<2}  {m.neurons:>5} of {dense.neurons:<4}"
            for m in self.layers
        ]
        return [*lines, f"{len(self.layers)} of {dense.layers} layers"]


def linear_multiply_adds(layers: Iterable[Any]) -> int:
    """Per token, over the compiled layers' products."""
    return sum(m.multiply_adds for layer in layers for m in layer.matrices)
