"""What a compiled encoder holds and costs, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from spatile.inference.architecture import Architecture
from spatile.inference.weights import EncoderWeights

__all__ = [
    "LayerSizes",
    "LayerSummary",
    "MatrixSummary",
    "Summary",
    "linear_multiply_adds",
    "summarize",
]


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


def _matrix(weights: EncoderWeights, name: str) -> MatrixSummary:
    w = weights.tensors[f"{name}.weight"]
    pattern, mask = weights.patterns.get(name), weights.masks.get(name)
    kept = w.size
    if pattern is not None and mask is not None:
        rows_each, cols_each = pattern.group_shape((w.shape[0], w.shape[1]))
        heights = np.diff(np.append(np.arange(0, w.shape[0], rows_each), w.shape[0]))
        widths = np.diff(np.append(np.arange(0, w.shape[1], cols_each), w.shape[1]))
        kept = int((np.outer(heights, widths) * mask).sum())
    shape = (w.shape[0], w.shape[1])
    return MatrixSummary(name, shape, str(pattern or "dense"), 1.0 - kept / w.size, 4 * kept)


def summarize(weights: EncoderWeights, a: Architecture, layers: Sequence[Any]) -> Summary:
    """The summary of an encoder; ``layers`` as they were compiled."""
    names = (a.layer(i) for i in range(a.n_layers))
    left = a.structure
    dense = left.n_layers * (4 * a.width * a.width + 2 * a.width * a.inner)
    return Summary(
        matrices=tuple(
            _matrix(weights, name)
            for n in names
            for name in (n.query, n.key, n.value, n.output, *n.ffn)
        ),
        layers=tuple(
            LayerSummary(kept.layer, len(layer.heads), layer.neurons)
            for kept, layer in zip(left.layers, layers, strict=True)
        ),
        dense_layers=LayerSizes(left.n_layers, left.n_heads, left.n_neurons),
        multiply_adds_per_token=linear_multiply_adds(layers),
        dense_multiply_adds_per_token=dense,
        nbytes=sum(m.nbytes for layer in layers for m in layer.matrices),
        merged_layers=tuple(i for i, layer in enumerate(layers) if layer.merged),
    )
