"""One-shot second-order pruning of a checkpoint, on texts without labels. Needs PyTorch."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np

from spatile.finetune.batches import encode
from spatile.finetune.checkpoints import load_classifier, load_encoder, load_tokenizer
from spatile.finetune.data import load_task
from spatile.finetune.data.task import Examples
from spatile.finetune.layers import faster_linear
from spatile.inference.weights import EncoderWeights
from spatile.sparsity import Plan, Structure
from spatile.torch import Pruner, prune_structure, swap_layers

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
    saliency: str,
    rows: int,
    damping: float,
    max_length: int,
    classifies: bool,
) -> Structure:
    """Prune ``weights``, those of the checkpoint at ``source``; returns what structure they have.

    What counts is what the model gives: logits where it ``classifies``, else hidden states.
    ``rows`` of the examples are drawn by a fixed seed, each cut to ``max_length`` tokens.
    """
    load = load_classifier if classifies else load_encoder
    model, tokenizer = load(source, attention="auto"), load_tokenizer(source)
    swap_layers(model, linear=faster_linear() == "spatile")
    chosen = random.Random(0).sample(range(len(examples)), min(rows, len(examples)))
    data = encode(tokenizer, examples, max_length)
    picked = sorted((data.rows[i] for i in chosen), key=lambda row: -len(row["input_ids"]))
    batches = [data.pad(picked[i : i + _BATCH]) for i in range(0, len(picked), _BATCH)]
    structure = prune_structure(
        model,
        plan,
        batches,
        saliency=saliency,  # type: ignore[arg-type]
        scope="global" if scope == "global" else "matrix",
        damping=damping,
    )
    _take_layers(model, weights)
    if not any(entry.sparsity > 0 for entry in plan.entries):
        return structure
    pruner = Pruner(
        model,
        plan,
        strength=0.0,
        scope=scope,  # type: ignore[arg-type]
        saliency=saliency,  # type: ignore[arg-type]
        calibration=batches,
        damping=damping,
    )
    masks = pruner.prune()
    _take_layers(model, weights)
    for m in pruner.matrices:
        name = _plain(m.name, weights)
        weights.patterns[name], weights.masks[name] = m.pattern, masks[m.name].numpy()
    return structure


def _take_layers(model: Any, weights: EncoderWeights) -> None:
    """Have ``weights`` hold the model's layers, of which there may be fewer now."""
    inside = re.compile(r"(?:^|\.)((?:encoder|transformer)\.layer\..*)")
    for name in [n for n in weights.tensors if inside.match(n)]:
        del weights.tensors[name]
    for name, parameter in model.named_parameters():
        found = inside.search(name)
        if found is not None:
            weights.tensors[found[1]] = parameter.detach().numpy().copy()


def _plain(name: str, weights: EncoderWeights) -> str:
    """The name of a model's matrix in ``weights``, which has no model prefix."""
    parts = name.split(".")
    return next(
        tail
        for tail in (".".join(parts[i:]) for i in range(len(parts)))
        if f"{tail}.weight" in weights.tensors
    )
