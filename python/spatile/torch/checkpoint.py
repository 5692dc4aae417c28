"""The state of a pruning run, kept as two files in each of the Trainer's checkpoint folders.

``spatile_pruning.safetensors`` holds β, masks and the reweighted stage's starting point;
``spatile_pruning.json`` the rest, a checksum of the tensors, and one of the weights they belong to.
The JSON is written last of all files of a checkpoint, so its presence says the folder is complete.
"""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from spatile.sparsity import read_document, write_atomically
from spatile.torch.pruner import Pruner

__all__ = ["SavedState", "last_checkpoint", "read_state", "weights_checksum", "write_state"]

_TENSORS = "spatile_pruning.safetensors"
_JSON = "spatile_pruning.json"
_FORMAT = "spatile.pruning"
_VERSION = 1


@dataclass
class SavedState:
    """What the two files hold: JSON-serialisable ``values``, and tensors by kind and matrix."""

    values: dict[str, Any]
    tensors: dict[str, dict[str, torch.Tensor]]


def write_state(folder: Path, state: SavedState) -> None:
    """Write both files into ``folder``, each whole or not at all; OSError names the file."""
    flat = {
        f"{kind}/{name}": tensor.detach().cpu().contiguous()
        for kind, named in state.tensors.items()
        for name, tensor in named.items()
    }
    blob = safetensors.torch.save(flat)
    values = {
        "format": _FORMAT,
        "version": _VERSION,
        "tensors_crc32": zlib.crc32(blob),
        "kinds": sorted(state.tensors),
        **state.values,
    }
    write_atomically(folder / _TENSORS, blob)
    write_atomically(folder / _JSON, (json.dumps(values, indent=1) + "\n").encode())


def read_state(folder: str | PathLike[str]) -> SavedState | None:
    """Read both files of ``folder``; None where it holds none.

    Raises ValueError naming the file for a damaged one and for a version newer than this one's.
    """
    path = Path(folder) / _JSON
    if not path.exists():
        return None
    values = read_document(path, format=_FORMAT, version=_VERSION, missing=f"{path}: missing")
    tensors_path = Path(folder) / _TENSORS
    try:
        blob = tensors_path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{tensors_path}: missing, expected beside {_JSON}") from None
    if zlib.crc32(blob) != values.get("tensors_crc32"):
        raise ValueError(f"{tensors_path}: does not belong to {_JSON} (checksums differ)")
    tensors: dict[str, dict[str, torch.Tensor]] = {kind: {} for kind in values["kinds"]}
    for key, tensor in safetensors.torch.load(blob).items():
        kind, _, name = key.partition("/")
        tensors[kind][name] = tensor
    return SavedState(values, tensors)


def last_checkpoint(output_dir: str | PathLike[str]) -> str | None:
    """The newest ``checkpoint-N`` of ``output_dir`` that was written to its end, or None.

    A run killed while saving leaves a folder that can't be resumed from; this passes it over.
    """
    numbered: list[tuple[int, Path]] = []
    root = Path(output_dir)
    for path in root.iterdir() if root.is_dir() else ():
        found = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if found and path.is_dir():
            numbered.append((int(found[1]), path))
    for _, path in sorted(numbered, reverse=True):
        try:
            if read_state(path) is not None:
                return str(path)
        except ValueError:
            continue
    return None


def weights_checksum(pruner: Pruner) -> int:
    """CRC-32 over the bytes of all planned matrices: which weights a state belongs to."""
    total = 0
    for m in pruner.matrices:
        raw = pruner.weight(m).contiguous().cpu().flatten().view(torch.uint8)
        total = zlib.crc32(raw.numpy(), total)
    return total
