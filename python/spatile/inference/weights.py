"""The weights of an encoder by their plain names, with the masks of its pruned matrices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spatile.inference.architecture import Architecture
from spatile.inference.files import Tensors, read_json, read_tensors
from spatile.patterns import Pattern
from spatile.sparsity import Plan, match

__all__ = ["EncoderWeights", "nonzero_groups", "read_checkpoint", "strip_prefix"]

Array = np.ndarray[Any, Any]


@dataclass
class EncoderWeights:
    """Tensors by plain name (no model prefix), and the pattern and kept groups of pruned ones.

    ``patterns`` and ``masks`` are keyed by the matrix's name (without ``.weight``).
    """

    tensors: Tensors
    patterns: dict[str, Pattern] = field(default_factory=dict)
    masks: dict[str, Array] = field(default_factory=dict)
    source: str = "weights"

    def get(self, name: str, shape: tuple[int, ...]) -> Array:
        """The float32 tensor of this name; ValueError where it is missing or of another shape."""
        if name not in self.tensors:
            raise ValueError(f"{self.source}: {name} is missing, expected shape {shape}")
        tensor = self.tensors[name]
        if tensor.shape != shape:
            raise ValueError(
                f"{self.source}: {name} has shape {tensor.shape}, "
                f"expected {shape} from the configuration"
            )
        if tensor.dtype != np.float32:
            raise ValueError(f"{self.source}: {name} has dtype {tensor.dtype}, expected floats")
        return np.ascontiguousarray(tensor)


def strip_prefix(tensors: Tensors, architecture: Architecture) -> Tensors:
    """Encoder weights without ``bert.`` and the like; a head's weights keep their names.

    The pooler of a bare encoder gets the name that it has in a task model.
    """
    plain: Tensors = {}
    for name, tensor in tensors.items():
        short = name.removeprefix(architecture.prefix)
        if short.startswith("pooler."):
            short = architecture.prefix + short
        plain[_modern(short)] = tensor
    return plain


def _modern(name: str) -> str:
    # Checkpoints converted from TensorFlow long ago call LayerNorm's parameters gamma and beta.
    if name.endswith("LayerNorm.gamma"):
        return name.removesuffix("gamma") + "weight"
    if name.endswith("LayerNorm.beta"):
        return name.removesuffix("beta") + "bias"
    return name


def _shards(folder: Path) -> Iterable[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if index.exists():
        files = read_json(index).get("weight_map")
        if not isinstance(files, dict):
            raise ValueError(f"{index}: weight_map is missing")
        names = {str(file) for file in files.values()}
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise ValueError(f"{index}: {outside[0]!r} is no file of this folder")
        return [folder / name for name in sorted(names)]
    hint = (
        "; it has pytorch_model.bin: save it again with safe_serialization=True"
        if (folder / "pytorch_model.bin").exists()
        else ""
    )
    raise FileNotFoundError(f"{folder}: no model.safetensors in this folder{hint}")


def read_checkpoint(folder: Path, architecture: Architecture) -> EncoderWeights:
    """The weights of a Hugging Face folder, dense."""
    tensors: Tensors = {}
    for shard in _shards(folder):
        tensors.update(read_tensors(shard))
    return EncoderWeights(strip_prefix(tensors, architecture), source=str(folder))


def nonzero_groups(w: Array, pattern: Pattern) -> Array:
    """The mask that keeps every group holding a weight other than zero."""
    rows, cols = pattern.group_shape((w.shape[0], w.shape[1]))
    by_row = np.logical_or.reduceat(w != 0, np.arange(0, w.shape[0], rows), axis=0)
    return np.logical_or.reduceat(by_row, np.arange(0, w.shape[1], cols), axis=1)


def apply_plan(weights: EncoderWeights, plan: Plan) -> None:
    """Take the plan's patterns; groups that are exactly zero are the pruned ones."""
    shapes = {n: t.shape for n, t in weights.tensors.items()}
    for entry in match(plan, shapes):
        weights.patterns[entry.name] = entry.pattern
        weights.masks[entry.name] = nonzero_groups(weights.tensors[entry.parameter], entry.pattern)
