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
from spatile.sparsity import Plan, Structure, match
from spatile.sparsity.structure import CONFIG_KEY, Cut, layer_cuts

__all__ = [
    "EncoderWeights",
    "expand_tensors",
    "nonzero_groups",
    "read_checkpoint",
    "slice_tensors",
    "strip_prefix",
]

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
    """The weights of a Hugging Face folder, dense, less the heads and neurons that are gone."""
    tensors: Tensors = {}
    for shard in _shards(folder):
        tensors.update(read_tensors(shard))
    plain = strip_prefix(tensors, architecture)
    return EncoderWeights(slice_tensors(plain, architecture, str(folder)), source=str(folder))


def slice_tensors(tensors: Tensors, architecture: Architecture, source: str) -> Tensors:
    """Tensors of the dense model's shapes, cut to the structure.

    Raises ValueError where what is cut off would change the model, for then the file was written
    by something that did not know that it is gone.
    """
    sliced = dict(tensors)
    for name, cut in _cuts(architecture).items():
        tensor = tensors.get(name)
        if tensor is None or tensor.ndim <= cut.axis or tensor.shape[cut.axis] != cut.full:
            continue  # the compiler says what is wrong with it
        gone = np.delete(tensor, cut.kept, axis=cut.axis)
        # Without its columns, nobody reads a head or a neuron: its rows may hold anything.
        if cut.axis == 1 and gone.any():
            raise ValueError(
                f"{source}: {name} has weights in columns that {CONFIG_KEY} of config.json says "
                f"are gone, expected zeros; remove {CONFIG_KEY} to run all of them"
            )
        sliced[name] = np.take(tensor, cut.kept, axis=cut.axis)
    return sliced


def expand_tensors(tensors: Tensors, architecture: Architecture) -> Tensors:
    """The reverse of :func:`slice_tensors`: zeros for what is gone."""
    whole = dict(tensors)
    for name, cut in _cuts(architecture).items():
        tensor = tensors[name]
        shape = list(tensor.shape)
        shape[cut.axis] = cut.full
        whole[name] = np.zeros(shape, tensor.dtype)
        whole[name][(slice(None),) * cut.axis + (list(cut.kept),)] = tensor
    return whole


def _cuts(a: Architecture) -> dict[str, Cut]:
    """How the layers' parameters are cut, where they are."""
    return {
        name: cut
        for i, layer in enumerate(a.structure.layers)
        for name, cut in layer_cuts(a.layer(i), layer, a.structure, head_width=a.head_width).items()
        if len(cut.kept) < cut.full
    }


def nonzero_groups(w: Array, pattern: Pattern) -> Array:
    """The mask that keeps every group holding a weight other than zero."""
    rows, cols = pattern.group_shape((w.shape[0], w.shape[1]))
    by_row = np.logical_or.reduceat(w != 0, np.arange(0, w.shape[0], rows), axis=0)
    return np.logical_or.reduceat(by_row, np.arange(0, w.shape[1], cols), axis=1)


def apply_plan(weights: EncoderWeights, plan: Plan, structure: Structure) -> None:
    """Take the plan's patterns; groups that are exactly zero are the pruned ones."""
    shapes = {n: t.shape for n, t in weights.tensors.items()}
    for entry in match(plan, shapes, structure=structure):
        weights.patterns[entry.name] = entry.pattern
        weights.masks[entry.name] = nonzero_groups(weights.tensors[entry.parameter], entry.pattern)
