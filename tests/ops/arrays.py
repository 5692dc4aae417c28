"""Arrays for the op tests: storage types, awkward strides, guarded memory, the tolerance rule."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch

DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def normal(
    shape: tuple[int, ...], *, seed: int = 0, dtype: str = "float32", scale: float = 1.0
) -> np.ndarray:
    """Normal numbers, rounded to the storage type."""
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(DTYPES[dtype])


def f64(x: Any) -> np.ndarray:
    """Any array or tensor as float64 NumPy."""
    if isinstance(x, torch.Tensor):
        return x.detach().double().numpy()
    return np.asarray(x).astype(np.float64)


def to_torch(x: np.ndarray) -> torch.Tensor:
    """A tensor with the same elements and the same type, in its own memory."""
    if x.dtype == DTYPES["bfloat16"]:
        return torch.from_numpy(np.ascontiguousarray(x).view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(x, order="C"))


def torch_dtype(name: str) -> torch.dtype:
    return _TORCH[name]


def strided_copies(x: np.ndarray) -> dict[str, np.ndarray]:
    """Views equal to ``x`` whose memory is laid out otherwise."""
    spread = np.full([2 * n + 1 for n in x.shape], 77, x.dtype)[
        tuple(slice(1, None, 2) for _ in x.shape)
    ]
    spread[...] = x
    reverse = tuple(slice(None, None, -1) for _ in x.shape)
    sliced = np.full([n + 3 for n in x.shape], 77, x.dtype)[tuple(slice(2, -1) for _ in x.shape)]
    sliced[...] = x
    return {
        "every other": spread,
        "column-major": np.asfortranarray(x),
        "reversed": x[reverse].copy()[reverse],
        "part of a larger array": sliced,
    }


GUARD = 256
_GUARD_BYTE = 0xA5


def guarded(shape: tuple[int, ...], dtype: np.dtype | type) -> tuple[np.ndarray, np.ndarray]:
    """(array of ``shape`` filled with guard bytes, the bytes around it included)."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.full(size + 2 * GUARD, _GUARD_BYTE, np.uint8)
    return memory[GUARD : GUARD + size].view(dtype).reshape(shape), memory


def assert_guards_intact(memory: np.ndarray) -> None:
    assert (memory[:GUARD] == _GUARD_BYTE).all(), "wrote before its output"
    assert (memory[-GUARD:] == _GUARD_BYTE).all(), "wrote past its output"


def assert_accurate(actual: Any, plain: Any, exact: Any, dtype: str) -> None:
    """The error is at most twice that of a plain implementation in the same type.

    Both errors are largest absolute differences from the float64 result; a few units in the last
    place of the largest value come on top, for where the plain version happens to be exact.
    """
    actual, plain, exact = f64(actual), f64(plain), f64(exact)
    assert actual.shape == exact.shape == plain.shape
    if exact.size == 0:
        return
    assert np.isfinite(actual).all(), "not finite where the definition is"
    error = np.abs(actual - exact).max()
    units = 8 if dtype == "float32" else 1
    slack = units * float(ml_dtypes.finfo(DTYPES[dtype]).eps) * np.abs(exact).max()
    allowed = 2 * np.abs(plain - exact).max() + slack
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"
