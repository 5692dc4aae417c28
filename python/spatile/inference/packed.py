"""The saved form of a packed encoder: ``model.safetensors`` and ``spatile.json``, which names it.

A pruned matrix ``name`` is stored as ``name.mask`` (uint8, one entry per group, 1 = kept) and
``name.values`` (float32, the weights of kept groups in row-major order of their places in the
matrix). Everything else is stored dense under its plain name. The layout that the products read is
made at load time, so files outlive it.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from spatile import ops
from spatile.inference.files import Tensors, read_json, read_tensors, write_json, write_tensors
from spatile.inference.weights import EncoderWeights
from spatile.patterns import as_pattern
from spatile.sparsity import Structure
from spatile.sparsity.structure import CONFIG_KEY

__all__ = ["MANIFEST", "is_packed", "read_packed", "write_packed"]

MANIFEST = "spatile.json"
FORMAT = "spatile.encoder"
# Version 2 has matrices cut to a structure, which the configuration holds; version 3 has schedules,
# without which the model would compute something else. A model with neither is written as
# version 1, which all can read.
VERSION = 3


def is_packed(folder: Path) -> bool:
    """Whether the folder holds the packed form."""
    return (folder / MANIFEST).exists()


def write_packed(folder: Path, weights: EncoderWeights, manifest: dict[str, Any]) -> None:
    """Write both files. The manifest comes last and names the tensors' file: a model that was here
    before stays whole until the new manifest replaces its own.
    """
    before = {path.name for path in folder.glob("model*.safetensors")}
    candidates = ("model.safetensors" if i == 0 else f"model-{i}.safetensors" for i in count())
    file_name = next(name for name in candidates if name not in before)
    stored: Tensors = {}
    matrices = {}
    pruned = {f"{name}.weight" for name in weights.patterns}
    for name, tensor in weights.tensors.items():
        if name not in pruned:
            stored[name] = tensor
    for name, pattern in weights.patterns.items():
        w, mask = weights.tensors[f"{name}.weight"], weights.masks[name]
        keep = ops.expand_mask(mask, w.shape, pattern=pattern)
        stored[f"{name}.mask"] = mask.astype(np.uint8)
        stored[f"{name}.values"] = w[keep]
        matrices[name] = {"pattern": str(pattern), "shape": list(w.shape)}
    version = 2 if CONFIG_KEY in manifest["config"] else 1
    if any((manifest.get("schedules") or {}).values()):
        version = 3
    head = {"format": FORMAT, "version": version, "tensors": file_name, "matrices": matrices}
    try:
        write_tensors(folder / file_name, stored)
        write_json(folder / MANIFEST, {**head, **manifest})
    except BaseException:
        (folder / file_name).unlink(missing_ok=True)
        raise
    for old in before:
        (folder / old).unlink(missing_ok=True)


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{path}: format is {manifest.get('format')!r}, expected {FORMAT!r}")
    version = manifest.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"{path}: version is {version!r}, expected a positive integer")
    if version > VERSION:
        raise ValueError(
            f"{path}: version is {version}, expected at most {VERSION}: "
            f"the model was written by a newer spatile"
        )
    for key in ("matrices", "config"):
        if not isinstance(manifest.get(key), dict):
            raise ValueError(f"{path}: {key} is missing, expected an object")
    Structure.of_config(manifest["config"], source=str(path))
    tensors = manifest.get("tensors")
    if not isinstance(tensors, str) or Path(tensors).name != tensors:
        raise ValueError(f"{path}: tensors is {tensors!r}, expected the name of a file beside it")
    return manifest


def _unpack(path: Path, name: str, entry: Any, tensors: Tensors, weights: EncoderWeights) -> None:
    try:
        pattern = as_pattern(entry["pattern"])
        rows, cols = (int(n) for n in entry["shape"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: matrices[{name!r}] is damaged ({error})") from None
    missing = [part for part in ("mask", "values") if f"{name}.{part}" not in tensors]
    if missing:
        raise ValueError(f"{path}: {name}.{missing[0]} is missing from model.safetensors")
    mask = tensors.pop(f"{name}.mask").astype(bool)
    values = tensors.pop(f"{name}.values")
    if rows < 1 or cols < 1 or mask.shape != pattern.mask_shape((rows, cols)):
        raise ValueError(
            f"{path}: {name}.mask has shape {mask.shape}, which does not fit "
            f"{rows} x {cols} by {pattern}"
        )
    keep = ops.expand_mask(mask, (rows, cols), pattern=pattern)
    if values.shape != (int(keep.sum()),) or values.dtype != np.float32:
        raise ValueError(
            f"{path}: {name}.values has shape {values.shape}, expected {(int(keep.sum()),)}"
        )
    dense = np.zeros((rows, cols), np.float32)
    dense[keep] = values
    weights.tensors[f"{name}.weight"] = dense
    weights.patterns[name] = pattern
    weights.masks[name] = mask


def read_packed(folder: Path) -> tuple[EncoderWeights, dict[str, Any]]:
    """The weights and the manifest. Raises ValueError naming the file where either is damaged, or
    written by a newer version.
    """
    path = folder / MANIFEST
    manifest = _read_manifest(path)
    tensors = read_tensors(folder / manifest["tensors"])
    weights = EncoderWeights({}, source=str(folder))
    for name, entry in manifest["matrices"].items():
        _unpack(path, name, entry, tensors, weights)
    weights.tensors.update(tensors)
    return weights, manifest
