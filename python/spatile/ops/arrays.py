"""The caller's kind of array: results come back as what came in.

NumPy arrays and CPU tensors of any library that speaks DLPack are read without a copy by the
extension; here are only the questions that Python must answer: which kind it is, and how to make an
empty one of the same kind.
"""

from __future__ import annotations

import operator
import sys
from typing import Any

import numpy as np

__all__ = ["Array", "check_out", "empty", "kind_of", "shape_of", "to_numpy", "whole_seed"]

Array = Any
"""A NumPy array, or a CPU tensor that speaks DLPack (a torch tensor, for example)."""


def kind_of(op: str, arg: str, x: Array) -> str:
    """``"numpy"``, ``"torch"``, or the root module of another DLPack library.

    Raises TypeError for what is no array, ValueError for a torch tensor that requires grad.
    """
    if isinstance(x, np.ndarray):
        return "numpy"
    root = type(x).__module__.partition(".")[0]
    # Parameter and other tensor subclasses may live in another module.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        if x.requires_grad:
            raise ValueError(
                f"{op}: {arg} requires grad, expected a detached tensor "
                f"(spatile.torch has the ops that autograd knows)"
            )
        if x.device.type != "cpu":
            raise NotImplementedError(f"{op}: {arg} is on {x.device}, expected the CPU")
        return "torch"
    if hasattr(x, "__dlpack__"):
        return root
    raise TypeError(f"{op}: {arg} is a {type(x).__name__}, expected an array (NumPy or DLPack)")


def shape_of(x: Array) -> tuple[int, ...]:
    """The shape as a plain tuple."""
    if isinstance(x, np.ndarray):
        shape: tuple[int, ...] = x.shape
        return shape
    return tuple(int(n) for n in x.shape)


def empty(like: Array, shape: tuple[int, ...], dtype: str | None = None) -> Array:
    """An uninitialised array of the kind of ``like``, of its dtype or the one named."""
    if isinstance(like, np.ndarray):
        return np.empty(shape, dtype=like.dtype if dtype is None else dtype)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(like, torch.Tensor):
        return torch.empty(shape, dtype=like.dtype if dtype is None else getattr(torch, dtype))
    library = sys.modules[type(like).__module__.partition(".")[0]]
    if not hasattr(library, "from_dlpack"):
        raise NotImplementedError(f"results of kind {library.__name__} (it has no from_dlpack)")
    name = str(like.dtype).rpartition(".")[2] if dtype is None else dtype
    return library.from_dlpack(np.empty(shape, dtype=name))


def whole_seed(op: str, seed: object) -> int:
    """``seed`` as an integer of 64 bits. Raises TypeError and ValueError naming it."""
    try:
        number = operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{op}: seed is a {type(seed).__name__}, expected an integer") from None
    if not 0 <= number < 2**64:
        raise ValueError(f"{op}: seed is {number}, expected 0 to 2**64 - 1")
    return number


def to_numpy(op: str, arg: str, x: Array) -> np.ndarray[Any, Any]:
    """A NumPy view of the array's memory (bfloat16 as ml_dtypes' type)."""
    kind = kind_of(op, arg, x)
    if kind == "numpy":
        return np.asarray(x)
    if kind == "torch" and str(x.dtype) == "torch.bfloat16":
        import ml_dtypes

        torch = sys.modules["torch"]
        return np.asarray(x.view(torch.uint16).numpy().view(ml_dtypes.bfloat16))
    return np.asarray(x.numpy()) if kind == "torch" else np.from_dlpack(x)


def check_out(
    op: str, out: Array, like: Array, shape: tuple[int, ...], inputs: dict[str, Array | None]
) -> Array:
    """``out`` as given, once it has the op's shape and dtype, and memory of its own."""
    kind_of(op, "out", out)
    if shape_of(out) != shape:
        raise ValueError(f"{op}: out.shape is {shape_of(out)}, expected {shape}")
    if str(out.dtype).rpartition(".")[2] != str(like.dtype).rpartition(".")[2]:
        raise TypeError(f"{op}: out.dtype is {out.dtype}, expected {like.dtype}")
    memory = to_numpy(op, "out", out)
    if not memory.flags.writeable:
        raise ValueError(f"{op}: out is read-only, expected a writable array")
    for name, x in inputs.items():
        # Bounds first, which is cheap. Interleaved slices are told apart with a little work, and
        # what is too hard is refused.
        if x is None or not np.may_share_memory(memory, to_numpy(op, name, x)):
            continue
        if np.may_share_memory(memory, to_numpy(op, name, x), max_work=100):  # type: ignore[arg-type]
            raise ValueError(f"{op}: out shares memory with {name}, expected memory of its own")
    return out
