"""The caller's kind of array: results come back as what came in, and where it was.

NumPy arrays, and the arrays of any library that speaks DLPack or ``__cuda_array_interface__``, are
read without a copy by the extension; here are only the questions that Python must answer: which
kind it is, and how to make an empty one of the same kind.
"""

from __future__ import annotations

import operator
import sys
from typing import Any

import numpy as np

from spatile import _core
from spatile._core import DeviceArray

__all__ = [
    "Array",
    "check_out",
    "empty",
    "gpu_of",
    "kind_of",
    "shape_of",
    "to_numpy",
    "whole_seed",
]

Array = Any
"""A NumPy array, a DeviceArray, or what speaks DLPack (a torch tensor, for example)."""


def kind_of(op: str, arg: str, x: Array) -> str:
    """``"numpy"``, ``"torch"``, or the root module of another library (``"spatile"``: ours).

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
        if x.device.type not in ("cpu", "cuda"):
            raise NotImplementedError(
                f"{op}: {arg} is on {x.device}, expected the CPU or a CUDA device"
            )
        return "torch"
    if hasattr(x, "__dlpack__") or hasattr(x, "__cuda_array_interface__"):
        return root
    raise TypeError(f"{op}: {arg} is a {type(x).__name__}, expected an array (NumPy or DLPack)")


def shape_of(x: Array) -> tuple[int, ...]:
    """The shape as a plain tuple."""
    if isinstance(x, np.ndarray):
        shape: tuple[int, ...] = x.shape
        return shape
    return tuple(int(n) for n in x.shape)


def gpu_of(x: Array) -> int | None:
    """The number of the GPU that an array is on; None for host memory."""
    if isinstance(x, np.ndarray):
        return None
    if isinstance(x, DeviceArray):
        return int(x.device.rpartition(":")[2])
    if getattr(x, "is_cuda", None) is False:  # a torch tensor tells at once
        return None
    if hasattr(x, "__dlpack_device__"):
        kind, number = x.__dlpack_device__()
        return int(number) if int(kind) in (2, 13) else None  # kDLCUDA, kDLCUDAManaged
    if hasattr(x, "__cuda_array_interface__"):
        return int(_core.addresses(x, "spatile")[-1])
    return None


def empty(like: Array, shape: tuple[int, ...], dtype: str | None = None) -> Array:
    """An uninitialised array of the kind of ``like``, of its dtype or the one named, beside it."""
    if isinstance(like, np.ndarray):
        return np.empty(shape, dtype=like.dtype if dtype is None else dtype)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(like, torch.Tensor):
        wanted = like.dtype if dtype is None else getattr(torch, dtype)
        return torch.empty(shape, dtype=wanted, device=like.device)
    library = sys.modules[type(like).__module__.partition(".")[0]]
    name = str(like.dtype).rpartition(".")[2] if dtype is None else dtype
    gpu = gpu_of(like)
    if gpu is None:
        if not hasattr(library, "from_dlpack"):
            raise NotImplementedError(f"results of kind {library.__name__} (it has no from_dlpack)")
        return library.from_dlpack(np.empty(shape, dtype=name))
    if library.__name__ == "cupy":  # in its own pool, on its current stream
        return library.empty(shape, dtype=name)
    made = _core.device_empty(shape, name, gpu)
    if isinstance(like, DeviceArray) or not hasattr(library, "from_dlpack"):
        return made
    return library.from_dlpack(made)


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
    """A NumPy view of the array's memory (bfloat16 as ml_dtypes' type).

    Raises ValueError for an array on a GPU: nothing is copied to the host unasked.
    """
    kind = kind_of(op, arg, x)
    if kind == "numpy":
        return np.asarray(x)
    gpu = gpu_of(x)
    if gpu is not None:
        raise ValueError(f"{op}: {arg} is on cuda:{gpu}, expected an array in host memory")
    if kind == "torch" and str(x.dtype) == "torch.bfloat16":
        import ml_dtypes

        torch = sys.modules["torch"]
        return np.asarray(x.view(torch.uint16).numpy().view(ml_dtypes.bfloat16))
    return np.asarray(x.numpy()) if kind == "torch" else np.from_dlpack(x)


class _Addresses:
    """What NumPy needs to reason about memory that it can't read: a GPU's."""

    def __init__(self, x: Array) -> None:
        address, shape, strides, size, writable, _ = _core.addresses(x, "spatile")
        self.__array_interface__ = {
            "data": (address, not writable),
            "shape": shape,
            "strides": strides,
            "typestr": f"|V{size}",
            "version": 3,
        }


def _memory(op: str, arg: str, x: Array) -> np.ndarray[Any, Any]:
    """The array's memory for questions about addresses; never to be read."""
    return to_numpy(op, arg, x) if gpu_of(x) is None else np.asarray(_Addresses(x))


def check_out(
    op: str, out: Array, like: Array, shape: tuple[int, ...], inputs: dict[str, Array | None]
) -> Array:
    """``out`` as given, once it has the op's shape and dtype, and memory of its own."""
    kind_of(op, "out", out)
    if shape_of(out) != shape:
        raise ValueError(f"{op}: out.shape is {shape_of(out)}, expected {shape}")
    if str(out.dtype).rpartition(".")[2] != str(like.dtype).rpartition(".")[2]:
        raise TypeError(f"{op}: out.dtype is {out.dtype}, expected {like.dtype}")
    if not _memory(op, "out", out).flags.writeable:
        raise ValueError(f"{op}: out is read-only, expected a writable array")
    for name, x in inputs.items():
        if x is not None:
            check_apart(op, "out", out, name, x)
    return out


def overlap(op: str, arg: str, target: Array, x: Array) -> bool:
    """Whether two arrays share memory; also where that is too hard to tell."""
    first, second = _memory(op, arg, target), _memory(op, arg, x)
    # Bounds first, which is cheap. Interleaved slices are told apart with a little work.
    return np.may_share_memory(first, second) and np.may_share_memory(
        first,
        second,
        max_work=100,  # type: ignore[arg-type]
    )


def check_apart(op: str, arg: str, target: Array, name: str, x: Array) -> None:
    """Raise ValueError where ``target``, which is written, shares memory with ``x``."""
    if overlap(op, arg, target, x):
        raise ValueError(f"{op}: {arg} shares memory with {name}, expected memory of its own")


def is_same(op: str, arg: str, target: Array, x: Array) -> bool:
    """Whether two arrays are the same elements of memory, in the same places."""
    first, second = (_memory(op, arg, a).__array_interface__ for a in (target, x))
    return all(first[k] == second[k] for k in ("data", "shape", "strides"))
