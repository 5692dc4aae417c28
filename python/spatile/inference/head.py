"""From the first token's hidden state to logits, and logits to predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spatile import ops
from spatile.inference.architecture import Architecture
from spatile.inference.cost import Cost
from spatile.inference.weights import EncoderWeights

__all__ = ["ClassifierHead", "Predictions", "read_head"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Predictions:
    """What :meth:`Encoder.predict` returns, one row per input, in their order.

    ``logits`` is (n, outputs) float32. For a classifier ``labels`` are the names of the likeliest
    classes and ``probabilities`` is (n, classes); for a regression both are None and ``logits``
    holds the values. ``cost``: what the encoder's layers did.
    """

    logits: Array
    labels: list[str] | None
    probabilities: Array | None
    cost: Cost | None = None

    def __len__(self) -> int:
        return len(self.logits)

    def __str__(self) -> str:
        if self.labels is None or self.probabilities is None:
            return "\n".join(f"{row[0]:.4f}" for row in self.logits)
        return "\n".join(
            f"{label}  {p.max():.3f}"
            for label, p in zip(self.labels, self.probabilities, strict=True)
        )


@dataclass(frozen=True)
class ClassifierHead:
    """A dense layer with its activation, then the output layer."""

    dense: Array
    dense_bias: Array
    activation: str
    out: Array
    out_bias: Array
    names: tuple[str, ...]
    regression: bool

    def logits(self, first: Array) -> Array:
        """(n, outputs) from the hidden states (n, width) of the first tokens."""
        inner = ops.linear(first, self.dense, bias=self.dense_bias, activation=self.activation)
        return np.asarray(ops.linear(inner, self.out, bias=self.out_bias))

    def predictions(self, first: Array) -> Predictions:
        """Logits, and what they mean."""
        logits = self.logits(first)
        if self.regression:
            return Predictions(logits, None, None)
        probabilities = np.asarray(ops.softmax(logits))
        best = [self.names[i] for i in logits.argmax(axis=1)] if len(logits) else []
        return Predictions(logits, best, probabilities)


# Their heads have the names of a sequence classifier's.
_OF_OTHER_TASKS = ("ForMultipleChoice", "ForTokenClassification")


def _label_names(config: Mapping[str, Any], count: int) -> tuple[str, ...]:
    given = config.get("id2label")
    if not isinstance(given, Mapping):
        return tuple(f"LABEL_{i}" for i in range(count))
    if len(given) != count:
        raise ValueError(
            f"config.json: id2label has {len(given)} labels, expected {count} as the classifier"
        )
    return tuple(str(given.get(str(i), given.get(i, f"LABEL_{i}"))) for i in range(count))


def read_head(
    weights: EncoderWeights, architecture: Architecture, config: Mapping[str, Any]
) -> ClassifierHead | None:
    """The sequence classification (or regression) head, or None where the checkpoint has none.

    Raises ValueError where its weights are of shapes that do not fit the encoder.
    """
    dense, activation, out = architecture.head
    final = weights.tensors.get(f"{out}.weight")
    if final is None or f"{dense}.weight" not in weights.tensors:
        return None
    named = config.get("architectures") or ()
    if any(str(name).endswith(_OF_OTHER_TASKS) for name in named):
        return None
    width, count = architecture.width, final.shape[0] if final.ndim == 2 else 0
    if count == 0:
        raise ValueError(
            f"{weights.source}: {out}.weight has shape {final.shape}, expected at least one row"
        )
    if config.get("problem_type") == "multi_label_classification":
        raise NotImplementedError("config.json: problem_type is multi_label_classification")
    regression = count == 1 or config.get("problem_type") == "regression"
    return ClassifierHead(
        weights.get(f"{dense}.weight", (width, width)),
        weights.get(f"{dense}.bias", (width,)),
        activation,
        weights.get(f"{out}.weight", (count, width)),
        weights.get(f"{out}.bias", (count,)),
        _label_names(config, count),
        regression,
    )
