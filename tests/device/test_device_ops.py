"""Ops on device arrays: kinds, mixed devices, host arguments, streams, failures of the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spatile as sp
from tests.device.conftest import Run
from tests.device.test_device_arrays import Foreign, Interface, address, some


def test_results_come_back_in_the_callers_kind(gpu: str) -> None:
    x = some((4, 8))
    d = sp.to_device(x)
    for given in (d, d.T, Foreign(d), Interface(d)):
        y = sp.gelu(given)
        expected = sp.gelu(x.T if given.shape == (8, 4) else x)
        assert isinstance(y, sp.DeviceArray)
        assert y.device == gpu
        np.testing.assert_allclose(y.numpy(), expected, atol=1e-6)


def test_a_bfloat16_array(gpu: str) -> None:
    x = some((4, 8), "bfloat16")
    y = sp.gelu(sp.to_device(x))
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y.numpy().view(np.uint16), sp.gelu(x).view(np.uint16))


def test_out_and_memory_of_its_own(gpu: str) -> None:
    x, w = sp.to_device(some((4, 8))), sp.to_device(some((16, 8)))
    out = sp.to_device(np.zeros((4, 16), np.float32))
    assert sp.linear(x, w, out=out) is out
    np.testing.assert_allclose(out.numpy(), x.numpy() @ w.numpy().T, atol=1e-5)
    square = sp.to_device(some((8, 8)))
    with pytest.raises(ValueError, match="out shares memory with x"):
        sp.linear(square, sp.to_device(some((8, 8))), out=square.T)


def test_mixed_devices_are_refused(gpu: str) -> None:
    x, w = some((4, 8)), some((8,))
    with pytest.raises(
        ValueError, match="layer_norm: x is on cuda:0 and weight on the CPU, expected"
    ):
        sp.layer_norm(sp.to_device(x), w, w)
    with pytest.raises(
        ValueError, match="layer_norm: x is on the CPU and weight on cuda:0, expected"
    ):
        sp.layer_norm(x, sp.to_device(w), w)
    matrix = some((16, 8))
    with pytest.raises(ValueError, match="linear: w is on the CPU and x on cuda:0"):
        sp.linear(sp.to_device(x), sp.pack(matrix))
    with pytest.raises(ValueError, match="linear: w is on cuda:0 and x on the CPU"):
        sp.linear(x, sp.pack(matrix).to("cuda"))


def test_index_arguments_are_the_hosts(gpu: str) -> None:
    scores = some((9,))
    d, offsets = sp.to_device(scores), np.array([0, 4, 9])
    found = sp.topk(d, 2, offsets=offsets)
    assert found.indices.numpy().tolist() == sp.topk(scores, 2, offsets=offsets).indices.tolist()
    kept = sp.select_tokens(d, 0.5, offsets=offsets, protect=[-1])
    expected = sp.select_tokens(scores, 0.5, offsets=offsets, protect=[-1])
    assert kept.index.numpy().tolist() == expected.index.tolist()
    with pytest.raises(
        ValueError, match="topk: offsets is on cuda:0, expected an array in host mem"
    ):
        sp.topk(d, 2, offsets=sp.to_device(offsets))
    q = sp.to_device(some((1, 4, 2, 8)))
    with pytest.raises(
        ValueError, match="attention: lengths is on cuda:0, expected an array in host"
    ):
        sp.attention(q, q, q, lengths=sp.to_device(np.array([3])))


@pytest.mark.parametrize("pattern", ["tile", "element"])
def test_packed_weights_on_a_device(gpu: str, pattern: str) -> None:
    w, x = some((48, 32)), some((5, 32))
    packed = sp.pack(w, sp.prune_mask(w, pattern=pattern, sparsity=0.5), pattern=pattern)
    there = packed.to("cuda")
    assert there.device == gpu
    assert there.to(gpu) is there
    assert packed.device == "cpu"
    assert not there.values.flags.writeable
    assert packed.values.flags.writeable
    y = sp.linear(sp.to_device(x), there)
    np.testing.assert_allclose(y.numpy(), sp.linear(x, packed), atol=1e-4)
    grads = sp.linear_backward(y, sp.to_device(x), there)
    expected = sp.linear_backward(y.numpy(), x, packed)
    for mine, theirs in zip(grads, expected, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, atol=1e-3)
    back = there.to("cpu")
    assert back.values.flags.writeable
    assert (back.to_dense() == packed.to_dense()).all()


def test_ops_that_are_the_cpus(gpu: str) -> None:
    w, gram = sp.to_device(some((16, 16))), sp.to_device(np.eye(16, dtype=np.float32))
    with pytest.raises((NotImplementedError, ValueError), match="second_order_prune"):
        sp.second_order_prune(w, gram, pattern="column", sparsity=0.5)


FAKE_TORCH = """
import sys, types
torch = types.ModuleType("torch")
class Tensor:
    __module__ = "torch"
    requires_grad, is_cuda = False, True
    device = types.SimpleNamespace(type="cuda", index=0)
    dtype = "torch.float32"
    def __init__(self, array): self.array, self.shape = array, array.shape
    def __dlpack_device__(self): return (2, 0)
    def __dlpack__(self, *, stream=None, max_version=None):
        asked.append(stream)
        return self.array.__dlpack__(stream=stream, max_version=max_version)
torch.Tensor, torch.float32 = Tensor, "torch.float32"
torch.empty = lambda shape, dtype, device: Tensor(sp.to_device(np.zeros(shape, np.float32)))
torch.cuda = types.SimpleNamespace(  # 2 is the handle of the per-thread default stream
    current_stream=lambda device: types.SimpleNamespace(cuda_stream=2))
asked = []
sys.modules["torch"] = torch
"""


def test_torch_tensors_run_on_torchs_stream(run: Run) -> None:
    code = (
        FAKE_TORCH
        + """
y = sp.gelu(Tensor(sp.to_device(x)))
assert type(y) is Tensor and asked == [-1, -1], asked
print(abs(y.array.numpy() - sp.gelu(x)).max() < 1e-6)
ones = np.ones(8, np.float32)
y = sp.layer_norm(Tensor(sp.to_device(x)), *[sp.to_device(ones)] * 2)  # ours are ordered with it
print(abs(y.array.numpy() - sp.layer_norm(x, ones, ones)).max() < 1e-6)
sp.synchronize()
"""
    )
    done = run(code)
    assert done.stdout == "True\nTrue\n", done.stdout + done.stderr


def test_too_little_memory_names_the_bytes_and_the_next_call_works(run: Run) -> None:
    code = """
d = sp.to_device(x)
try: sp.to_device(np.ones((1024, 1024), np.float32))
except MemoryError as e: print(e)
print(sp.gelu(d).shape, sp.gelu(sp.to_device(x)).shape)
"""
    done = run(code, SPT_EMULATED_FAULTS="memory:1000000")
    told, works = done.stdout.splitlines()
    assert "to_device: allocating: 4194304 bytes wanted of the device" in told
    assert "free of 1000000" in told
    assert "cudaErrorMemoryAllocation" in told
    assert works == "(4, 8) (4, 8)"


def test_kept_memory_is_given_back_before_memory_lacks(run: Run) -> None:
    code = """
for n in (100, 101, 102): sp.to_device(np.ones((n, 64), np.float32))  # 25 KB each, and kept
print(sp.to_device(np.ones((350, 64), np.float32)).shape)
"""
    done = run(code, SPATILE_EMULATED_POOL="1", SPT_EMULATED_FAULTS="memory:100000")
    assert done.stdout == "(350, 64)\n", done.stdout + done.stderr


@pytest.mark.parametrize("device", [None, "cuda-on-cpu"])
def test_a_failed_launch_is_one_exception(run: Run, device: str | None) -> None:
    code = """
d = sp.to_device(x) if DEVICE is None else x
try: sp.gelu(d)
except RuntimeError as e: print(e)
print(sp.gelu(d).shape)
"""
    done = run(
        code.replace("DEVICE", repr(device)),
        SPATILE_DEVICE=device,
        SPT_EMULATED_FAULTS="launch:1",
    )
    told, works = done.stdout.splitlines()
    assert told.startswith("gelu: launching (gelu")
    assert "cudaError" in told
    assert works == "(4, 8)"


def test_addresses_are_looked_at_where_they_are(gpu: str, library: Path) -> None:
    d = sp.to_device(some((4, 8)))
    assert address(d.T) == address(d.reshape(32)) == address(sp.from_dlpack(d))


def test_threads(gpu: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    x = some((16, 16))
    expected = sp.gelu(x)

    def work(_: int) -> Any:
        return np.abs(sp.gelu(sp.to_device(x)).numpy() - expected).max()

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(work, range(40))) < 1e-6
