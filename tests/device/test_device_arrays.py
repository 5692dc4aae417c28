"""Device arrays: made, viewed, handed over both ways without a copy, freed."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

import spatile as sp
from spatile import _core
from tests.device.conftest import Run

DTYPES = ["float32", "float16", "bfloat16", "float64", "bool", "uint8", "int32", "int64"]


def some(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray[Any, Any]:
    if dtype == "bfloat16":
        return some(shape).astype(pytest.importorskip("ml_dtypes").bfloat16)
    return (np.random.default_rng(0).standard_normal(shape) * 3).astype(dtype)


class Foreign:
    """An array of another library, with the protocols it is told to have."""

    def __init__(self, array: sp.DeviceArray, version: int = 1) -> None:
        self.array, self.version = array, version
        self.shape, self.dtype = array.shape, array.dtype
        self.asked: list[dict[str, Any]] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def __dlpack__(self, **keywords: Any) -> object:
        if self.version == 0 and "max_version" in keywords:
            raise TypeError("max_version")
        self.asked.append(keywords)
        return self.array.__dlpack__(**keywords)


class Interface:
    """One that has __cuda_array_interface__ alone."""

    def __init__(self, array: sp.DeviceArray, **changes: Any) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, **changes}


def address(x: Any) -> int:
    return _core.addresses(x, "test")[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4), (2, 0, 3), (2, 3, 4, 5)])
def test_to_a_device_and_back(gpu: str, shape: tuple[int, ...], dtype: str) -> None:
    x = some(shape, dtype) if shape else np.ones((), some((1,), dtype).dtype)
    d = sp.to_device(x, gpu)
    assert (d.shape, d.dtype, d.ndim, d.nbytes, d.device) == (shape, x.dtype, x.ndim, x.nbytes, gpu)
    back = d.numpy()
    assert back.dtype == x.dtype
    assert back.shape == shape
    assert (back == x).all()
    assert sp.to_device(d, "cpu").tolist() == back.tolist()
    assert sp.to_device(d, gpu) is d


def test_host_arrays_of_any_strides_and_kinds(gpu: str) -> None:
    x = some((6, 8))
    for view in (x[::-1, ::2], x.T, x[2:, 1:], np.broadcast_to(x[0], (3, 8))):
        assert (sp.to_device(view).numpy() == view).all()
    torch = pytest.importorskip("torch")
    t = torch.arange(12.0).reshape(3, 4).T
    assert (sp.to_device(t).numpy() == t.numpy()).all()


def test_what_is_no_array_or_of_no_dtype(gpu: str) -> None:
    with pytest.raises(TypeError, match="to_device: x"):
        sp.to_device(np.zeros(3, np.complex64))
    with pytest.raises(TypeError, match="expected an array"):
        sp.to_device([1, 2])
    with pytest.raises(TypeError, match="cannot create"):
        sp.DeviceArray()


def test_views(gpu: str) -> None:
    x = some((4, 6))
    d = sp.to_device(x)
    assert repr(d) == f"DeviceArray(shape=(4, 6), dtype=float32, device='{gpu}')"
    assert len(d) == 4
    assert (d.T.numpy() == x.T).all()
    assert (d.reshape(3, -1).numpy() == x.reshape(3, 8)).all()
    assert (d.T.reshape((2, 3, 4)).numpy() == x.T.reshape(2, 3, 4)).all()
    assert (d.T.T.reshape(24).numpy() == x.ravel()).all()
    for wrong in ((5, 5), (-1, -1), (-2, 12), (7, -1)):
        with pytest.raises(ValueError, match="reshape"):
            d.reshape(wrong)
    with pytest.raises(ValueError, match="without a copy"):
        d.T.reshape(24)
    view = d.T
    del d
    gc.collect()
    assert (view.numpy() == x.T).all()  # it keeps the memory


def test_nothing_goes_to_the_host_unasked(gpu: str) -> None:
    d = sp.to_device(some((3,)))
    with pytest.raises(TypeError, match=r"use its numpy\(\)"):
        np.asarray(d)
    with pytest.raises(BufferError, match=r"use its numpy\(\)"):
        d.__dlpack__(dl_device=(1, 0))
    with pytest.raises(BufferError, match=r"use its numpy\(\)"):
        d.__dlpack__(copy=True)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dlpack_both_ways_without_a_copy(gpu: str, dtype: str, version: int) -> None:
    x = some((3, 5), dtype)
    d = sp.to_device(x)
    for array in (d, d.T):
        foreign = Foreign(array, version)
        back = sp.from_dlpack(foreign)
        assert address(back) == address(array) == address(foreign)
        assert (back.numpy() == array.numpy()).all()
        assert back.dtype == x.dtype
        assert all(asked["stream"] == 1 for asked in foreign.asked)  # ready on the default stream


def test_the_interface_both_ways_without_a_copy(gpu: str) -> None:
    x = some((4, 6))
    d = sp.to_device(x)
    for array in (d, d.T):
        back = sp.from_dlpack(Interface(array))
        assert address(back) == address(array)
        assert (back.numpy() == array.numpy()).all()
    assert d.__cuda_array_interface__["stream"] == 1
    assert sp.from_dlpack(Interface(d, stream=None)).shape == d.shape
    with pytest.raises(ValueError, match="stream 0"):
        sp.from_dlpack(Interface(d, stream=0))
    with pytest.raises(ValueError, match="no usable"):
        sp.from_dlpack(Interface(d, data=None))
    with pytest.raises(ValueError, match="multiple of the element"):
        sp.from_dlpack(Interface(d, strides=(24, 3)))
    read_only = sp.from_dlpack(Interface(d, data=(address(d), True)))
    with pytest.raises(ValueError, match="read-only"):
        sp.group_shrink_(read_only, pattern="row", strength=1.0)
    with pytest.raises(BufferError, match="read-only"):
        read_only.__dlpack__()
    assert "versioned" in repr(read_only.__dlpack__(max_version=(1, 0)))


def test_bfloat16_has_no_interface_but_dlpack(gpu: str) -> None:
    d = sp.to_device(some((3,), "bfloat16"))
    assert not hasattr(d, "__cuda_array_interface__")
    assert (sp.from_dlpack(Foreign(d)).numpy() == d.numpy()).all()


@pytest.mark.parametrize("max_version", [None, (0, 8), (1, 0), (1, 3)])
def test_a_capsule_can_be_consumed_once(gpu: str, max_version: tuple[int, int] | None) -> None:
    import ctypes

    d = sp.to_device(some((3,)))
    capsule = d.__dlpack__(max_version=max_version)
    versioned = max_version is not None and max_version[0] >= 1
    used = b"used_dltensor_versioned" if versioned else b"used_dltensor"
    ctypes.pythonapi.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]
    ctypes.pythonapi.PyCapsule_SetName(capsule, used)

    class Twice(Foreign):
        def __dlpack__(self, **keywords: Any) -> object:
            return capsule

    with pytest.raises(ValueError, match="gelu: x gives no DLPack capsule that is still to be"):
        sp.gelu(Twice(d))


def test_streams_of_consumers(gpu: str) -> None:
    d = sp.to_device(some((3,)))
    for stream in (None, -1, 1, 2):
        assert "dltensor" in repr(d.__dlpack__(stream=stream))
    for stream in (0, -2):
        with pytest.raises(ValueError, match="stream is"):
            d.__dlpack__(stream=stream)


def test_freeing_early(gpu: str) -> None:
    d = sp.to_device(some((3, 4)))
    view, capsule = d.T, d.__dlpack__()
    with pytest.raises(BufferError, match="shared with others"):
        d.free()
    del capsule
    d.free()
    d.free()
    for use in (d.numpy, view.numpy, d.__dlpack__, lambda: sp.gelu(d), lambda: sp.gelu(view)):
        with pytest.raises(RuntimeError, match="freed"):
            use()
    assert "freed" in repr(d)


def test_memory_goes_with_the_array(run: Run) -> None:
    code = """
import gc
free = lambda: sp.info()['gpu']['devices'][0]['free_memory']
sp.gelu(sp.to_device(x)); gc.collect()
before = free()
for _ in range(200):
    d = sp.to_device(np.ones((64, 64), np.float32))
    views = [d.T, d.reshape(4096), sp.from_dlpack(d)]
    c = d.__dlpack__(max_version=(1, 0)), d.__dlpack__()
    sp.gelu(d)
    try: sp.gelu(sp.to_device(np.ones(3)))
    except TypeError: pass
held = before - free()
del d, views, c; gc.collect()
print(before == free(), held)
"""
    done = run(code)
    # What is alive at once is one array and its result, each in its guards.
    alike, held = done.stdout.split()
    assert alike == "True", done.stdout + done.stderr
    assert 64 * 64 * 4 <= int(held) < 4 * 64 * 64 * 4


def test_arrays_alive_at_exit(run: Run) -> None:
    code = (
        "import builtins; builtins.kept = sp.to_device(x); kept2 = [kept.__dlpack__()]; cycle = []"
    )
    done = run(code + "; cycle.append((cycle, kept2))")
    assert done.returncode == 0
    assert done.stderr == ""


def test_pieces_are_used_again(run: Run) -> None:
    code = """
def place(): return sp._core.addresses(sp.to_device(x), 'test')[0]
first = {place() for _ in range(20)}
info = lambda: sp.info()['gpu']['devices'][0]['free_memory']
before = info()
for n in range(1, 200): sp.to_device(np.ones(n, np.float32))
print(len(first), before - info() < 200 * 4 * 100)
"""
    done = run(code, SPATILE_EMULATED_POOL="1")
    assert done.stdout == "1 True\n", done.stdout + done.stderr
