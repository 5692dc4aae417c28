"""CUDA tensors for a PyTorch without CUDA, in the emulated backend's memory.

Python sees what a GPU shows it: ``device`` is cuda:0, tensors there and on the CPU don't mix, NumPy
gets none of them, DLPack says where they are. spatile's ops read them through DLPack and run on the
emulated kernels; PyTorch's own run on the CPU, for that memory is the host's. What it can't show is
PyTorch's side of a GPU: its kernels, its allocator, streams, and work that nobody waited for.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from spatile import _core

__all__ = ["EmulatedCuda", "emulated_cuda"]

GPU = torch.device("cuda", 0)
aten = torch.ops.aten
# What takes tensors of both places on a GPU too: copies, and indices from the host.
CROSSING = (aten.copy_.default, aten._to_copy.default, aten.index.Tensor, aten.index_put_.default)
FACTORIES = (
    *("empty", "zeros", "ones", "full", "arange", "tensor", "as_tensor", "rand", "randn"),
    *("randint", "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like"),
)
_living: set[int] = set()  # addresses of the emulation's memory that tensors hold


class _Memory:
    def __init__(self, size: int) -> None:
        self.array = _core.device_empty((size,), "uint8", 0)
        self.address = _core.addresses(self.array, "test")[0]
        _living.add(self.address)

    def __del__(self) -> None:
        _living.discard(self.address)


def _placed(x: torch.Tensor) -> torch.Tensor:
    """``x`` in the emulation's memory, where it is not there yet; to PyTorch it is on the CPU."""
    if x.numel() == 0 or x.untyped_storage().data_ptr() in _living:
        return x
    like = torch.empty_like(x, device="meta")  # dense, in the order of x's memory
    size = x.numel() * x.element_size()
    memory = _Memory(size)
    buffer = (ctypes.c_byte * size).from_address(memory.address)
    buffer.memory = memory  # type: ignore[attr-defined]  # PyTorch's storage holds the buffer
    flat = torch.frombuffer(buffer, dtype=torch.uint8).view(x.dtype)
    return flat.as_strided(x.shape, like.stride()).copy_(x)


class EmulatedCuda(torch.Tensor):
    """To PyTorch's C++ a tensor on the CPU, to Python one on cuda:0; ``inner`` has the numbers."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> EmulatedCuda:
        inner = _placed(inner)
        made: EmulatedCuda = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
        )
        made.inner = inner
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __repr__(self) -> str:
        return f"{self.inner!r} on {GPU}"

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def __deepcopy__(self, memo: Any) -> Any:
        function, arguments = self.__reduce_ex__(4)
        copied = memo[id(self)] = function(*arguments)
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        parameter = isinstance(self, torch.nn.Parameter)
        return again, (self.inner.clone(), self.requires_grad, parameter)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, **kwargs: Any) -> object:
        if self.requires_grad:
            raise BufferError("Can't export tensors that require gradient")
        capsule = self.inner.__dlpack__()
        ctypes.pythonapi.PyCapsule_GetPointer.restype = ctypes.c_void_p
        ctypes.pythonapi.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
        address = ctypes.pythonapi.PyCapsule_GetPointer(capsule, b"dltensor")
        # The device's type follows the pointer to the data.
        ctypes.c_int32.from_address(address + ctypes.sizeof(ctypes.c_void_p)).value = 2
        return capsule

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for t in tree_leaves((args, kwargs)):
            plain = isinstance(t, torch.Tensor) and not isinstance(t, cls)
            if plain and t.ndim > 0 and func not in CROSSING:
                raise RuntimeError(
                    f"{func}: expected all tensors to be on the same device, but found at least "
                    f"two devices, cuda:0 and cpu!"
                )
        inner_args, inner_kwargs = tree_map_only(cls, lambda t: t.inner, (args, kwargs))
        out = func(*inner_args, **inner_kwargs)
        if func is aten.copy_.default:
            return args[0]
        wrapped = tree_map_only(torch.Tensor, cls, out)
        return return_and_correct_aliasing(func, args, kwargs, wrapped)


def again(inner: torch.Tensor, requires_grad: bool, parameter: bool) -> torch.Tensor:
    """A pickled one."""
    made = EmulatedCuda(inner)
    return (torch.nn.Parameter(made) if parameter else made).requires_grad_(requires_grad)


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, up: bool) -> torch.Tensor:
        ctx.up = up
        return EmulatedCuda(x) if up else x.inner.clone()  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        return _Move.apply(grad, not ctx.up), None


def _move(x: torch.Tensor, device: torch.device | None) -> torch.Tensor:
    here = isinstance(x, EmulatedCuda)
    if device is None or (device.type == "cuda") == here:
        return x
    moved: torch.Tensor = _Move.apply(x, not here)
    return moved


def _factory(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        if "device" not in kwargs or kwargs["device"] is None:
            return function(*args, **kwargs)
        device = torch.device(kwargs["device"])
        if device.type == "cuda":
            kwargs["device"] = "cpu"
        grad = kwargs.pop("requires_grad", False)
        made = function(*args, **kwargs)
        return _move(made, device).requires_grad_(grad) if device.type != "meta" else made

    return make


def _to(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        copy = kwargs.pop("copy", False)
        if args and isinstance(args[0], torch.Tensor):
            device, dtype = args[0].device, args[0].dtype
        else:
            device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type == "meta":
            return original(self, device)
        found = _move(self, device)
        if found is not self:
            copy = False
        return original(found, found.dtype if dtype is None else dtype, copy=copy)

    return to


@contextlib.contextmanager
def emulated_cuda(patch: Any) -> Iterator[None]:
    """Meanwhile "cuda" is a device; ``patch`` is pytest's monkeypatch."""
    for name in FACTORIES:
        patch.setattr(torch, name, _factory(getattr(torch, name)))
    patch.setattr(torch.Tensor, "to", _to(torch.Tensor.to))
    patch.setattr(torch.Tensor, "cpu", lambda self, *_: _move(self, torch.device("cpu")))
    patch.setattr(torch.Tensor, "cuda", lambda self, *_, **__: _move(self, GPU))
    # 2 is the handle of the per-thread default stream.
    patch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=2))
    # A module that moves keeps its parameters, as it does between the CPU and a GPU.
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with torch.serialization.safe_globals([again]):  # for checkpoints of optimizers
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
