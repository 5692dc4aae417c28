"""One-shot second-order pruning of a checkpoint, on texts without labels. Needs PyTorch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from spatile.finetune.batches import encode
from spatile.finetune.checkpoints import load_classifier, load_tokenizer
from spatile.finetune.data import load_task
from spatile.finetune.data.task import Examples
from spatile.inference.weights import EncoderWeights
from spatile.sparsity import Plan
from spatile.torch import Pruner

__all__ = ["prune_on_texts", "read_texts"]

_BATCH = 32


def read_texts(source: str | Path, **options: Any) -> Examples:
    """Texts, or pairs of them: a text file's lines, or what trains in a data folder or hub set.

    ``options`` are those of :func:`spatile.finetune.data.load_task`. Raises ValueError for a file
    without a text.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        return load_task(str(source), **options).train
    lines = [line.strip() for line in path.read_text(encoding="utf-8").split("\n")]
    places = np.array([i for i, line in enumerate(lines) if line], np.int64)
    if len(places) == 0:
        raise ValueError(f"prune: calibration is {path}, a file without a text")
    no_labels = np.zeros(len(places), np.float32)
    return Examples([lines[i] for i in places], None, no_labels, places + 1)


def prune_on_texts(
    source: Path,
    weights: EncoderWeights,
    plan: Plan,
    examples: Examples,
    *,
    scope: str,
    rows: int,
    damping: float,
    max_length: int,
) -> dict[str, float]:
    """Prune ``weights``, those of the checkpoint at ``source``; returns the relative errors.

    ``rows`` of the examples are drawn by a fixed seed, each cut to ``max_length`` tokens.
    """
    model, tokenizer = load_classifier(source, attention="auto"), load_tokenizer(source)
    limit = getattr(model.config, "max_position_embeddings", max_length)
    chosen = random.Random(0).sample(range(len(examples)), min(rows, len(examples)))
    data = encode(tokenizer, examples, min(max_length, limit))
    picked = sorted((data.rows[i] for i in chosen), key=lambda row: -len(row["input_ids"]))
    batches = [data.pad(picked[i : i + _BATCH]) for i in range(0, len(picked), _BATCH)]
    pruner = Pruner(
        model,
        plan,
        strength=0.0,
        scope=scope,  # type: ignore[arg-type]
        saliency="second-order",
        calibration=batches,
        damping=damping,
    )
    masks = pruner.prune()
    plain = {_plain(name, weights): name for name in masks}
    for name, full in plain.items():
        matrix = next(m for m in pruner.matrices if m.name == full)
        weights.tensors[f"{name}.weight"] = pruner.weight(matrix).numpy().copy()
        weights.patterns[name], weights.masks[name] = matrix.pattern, masks[full].numpy()
    return pruner.relative_errors


def _plain(name: str, weights: EncoderWeights) -> str:
    """The name of a model's matrix in ``weights``, which has no model prefix."""
    parts = name.split(".")
    return next(
        tail
        for tail in (".".join(parts[i:]) for i in range(len(parts)))
        if f"{tail}.weight" in weights.tensors
    )
