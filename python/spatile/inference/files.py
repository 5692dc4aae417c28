"""Reading and writing the files of a model folder. What is damaged is named; what is written is
written beside and renamed, so that no crash leaves half a file under its final name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from spatile.sparsity import write_atomically

__all__ = [
    "Tensors",
    "read_json",
    "read_pooling",
    "read_tensors",
    "write_json",
    "write_pooling",
    "write_tensors",
]

Tensors = dict[str, "np.ndarray[Any, Any]"]

_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ValueError naming the file where it is something else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: holds a {type(data).__name__}, expected an object")
    return data


def _decode(path: Path, name: str, entry: dict[str, Any]) -> np.ndarray[Any, Any]:
    kind, raw, shape = entry["dtype"], entry["data"], tuple(entry["shape"])
    if kind == "BF16":  # NumPy has no bfloat16: its bits are the upper half of a float32's
        bits = np.frombuffer(raw, np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).reshape(shape)
    if kind not in _DTYPES:
        raise ValueError(f"{path}: {name} has dtype {kind}, expected one of {', '.join(_DTYPES)}")
    array = np.frombuffer(raw, _DTYPES[kind]).reshape(shape)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def read_tensors(path: Path) -> Tensors:
    """All tensors of a safetensors file, floats as float32 (bfloat16 too).

    Raises ValueError naming the file where it is truncated or its header lies.
    """
    import safetensors

    try:
        entries = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None
    return {name: _decode(path, name, entry) for name, entry in entries}


def write_json(path: Path, data: object) -> None:
    """Write an object as indented JSON."""
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Write a safetensors file."""
    from safetensors.numpy import save

    write_atomically(path, save({name: np.ascontiguousarray(t) for name, t in tensors.items()}))


# Where sentence-transformers says what one vector a text's tokens make.
_POOLING = Path("1_Pooling") / "config.json"
_SWITCH = "pooling_mode_"


def read_pooling(folder: Path) -> str:
    """What a checkpoint says: "mean", or "first", also where it says nothing.

    Raises NotImplementedError for another kind.
    """
    path = folder / _POOLING
    if not path.exists():
        return "first"
    settings = read_json(path)
    # One name, or several; before sentence-transformers 5.4, a switch for each.
    mode = settings.get("pooling_mode")
    if mode is None:
        on = [key for key, value in settings.items() if key.startswith(_SWITCH) and value is True]
        mode = [key.removeprefix(_SWITCH).removesuffix("_tokens") for key in on]
    modes = [mode] if isinstance(mode, str) else mode
    if modes == ["mean"]:
        return "mean"
    if modes in (["cls"], ["cls_token"], []):
        return "first"
    raise NotImplementedError(f"{path}: pooling is {', '.join(modes)}, expected cls or mean")


def write_pooling(folder: Path, pooling: str, width: int) -> None:
    """Write what :func:`read_pooling` reads; nothing for "first"."""
    if pooling == "mean":
        (folder / _POOLING).parent.mkdir(exist_ok=True)
        settings = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
        write_json(folder / _POOLING, settings)
