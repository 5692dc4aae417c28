"""Sizes, strides, alignment, tiers and memory at their limits: right, or refused by name."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.testing import assert_allclose, assert_array_equal

import spatile as sp

from ..conftest import elsewhere, of_the_cpu
from .arrays import normal
from .calls import Call, all_calls

CALLS = all_calls("float32")
NO_RESERVE = 0x4000
"""Linux's flag; the module names it from Python 3.13 on."""


def claiming(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """An array of this shape in the memory of one element."""
    return as_strided(np.ones(1, dtype), shape, (0,) * len(shape))


def mapped(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros of which only the pages that are touched take memory."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    return np.frombuffer(memory, dtype).reshape(shape)


# ---- 64-bit sizes -------------------------------------------------------------------------------


def grown(x: np.ndarray) -> np.ndarray:
    """As many axes, of 2**56 elements or more together, in the memory of one element."""
    return claiming(({1: 2**59, 2: 2**29, 3: 2**19, 4: 2**14}[x.ndim],) * x.ndim, x.dtype)


@pytest.mark.parametrize("name", CALLS)
def test_an_argument_that_no_memory_holds_is_refused(name: str) -> None:
    """Each array in turn claims 2**56 elements or more: no overflow, no crash, and soon."""
    call = CALLS[name]
    for i, x in enumerate(call.arrays):
        arrays = list(call.arrays)
        arrays[i] = grown(x)
        with pytest.raises((ValueError, MemoryError)):
            call(*arrays)


@pytest.mark.parametrize("name", CALLS)
def test_all_arguments_at_once(name: str) -> None:
    call = CALLS[name]
    if not call.arrays:
        return
    with pytest.raises((ValueError, TypeError, MemoryError)):
        call(*(grown(x) for x in call.arrays))


def test_the_message_names_the_argument_and_the_bound() -> None:
    huge = claiming((2**30, 2**29))
    with pytest.raises(ValueError, match=r"group_lasso: w is too large, expected at most 2\*\*48"):
        sp.group_lasso(huge, pattern="column")
    far = as_strided(np.ones(1, np.float32), (3, 3), (2**62, 4))
    with pytest.raises(ValueError, match=r"group_lasso: w\.strides\[0\] reaches too far"):
        sp.group_lasso(far, pattern="row")
    tensor = torch.ones(1).as_strided((2**30, 2**29), (0, 0))
    with pytest.raises(ValueError, match="group_lasso: w is too large"):
        sp.group_lasso(tensor, pattern="column")


@pytest.mark.parametrize("shape", [(1, 2**31), (2**31, 1)])
def test_a_dense_matrix_numbers_its_sides_in_32_bits(shape: tuple[int, int]) -> None:
    w, x = claiming(shape), claiming((1, shape[1]))
    axis = shape.index(2**31)
    message = rf"linear: w\.shape\[{axis}\] is 2147483648, expected at most 2\*\*31 - 17"
    with pytest.raises(ValueError, match=message):
        sp.linear(x, w, out=claiming((1, shape[0])))


too_much_to_emulate = pytest.mark.skipif(
    elsewhere() == "cuda-on-cpu", reason="thread by thread, 2**31 elements take hours"
)


@too_much_to_emulate
def test_more_than_two_to_the_31_weights() -> None:
    """Rows with stride 0: as many groups as there would be, in the memory of one row."""
    row = normal((1, 65536), scale=0.02)
    w = np.broadcast_to(row, (32784, 65536))
    assert w.size > 2**31
    norms = sp.group_norms(w, pattern="tile")
    assert norms.shape == (2049, 4096)
    expected = np.sqrt(16 * (row.astype(np.float64) ** 2).reshape(4096, 16).sum(axis=1))
    assert_allclose(norms[[0, 1024, 2048]], np.tile(expected, (3, 1)), rtol=1e-6)
    assert_array_equal(norms, np.broadcast_to(norms[0], norms.shape))
    assert sp.group_lasso(w, pattern="row") == pytest.approx(
        32784 * float(np.linalg.norm(row.astype(np.float64))), rel=1e-6
    )


@too_much_to_emulate
def test_more_than_two_to_the_31_inputs_of_a_product() -> None:
    x = np.broadcast_to(normal((1, 2048)), (2**20 + 24, 2048))
    w = normal((1, 2048), seed=1)
    y = sp.linear(x, w)
    assert_allclose(y[0], x[0].astype(np.float64) @ w[0], rtol=1e-4)
    assert_array_equal(y, np.broadcast_to(y[0], y.shape))


@too_much_to_emulate
@pytest.mark.skipif(sys.platform != "linux", reason="memory is mapped with Linux's flags")
def test_what_lies_beyond_two_to_the_31_elements_is_reached() -> None:
    """A table and a matrix of 4 GiB, of which a few pages are touched."""
    table = mapped((65538, 32768), np.float16)
    table[65537] = 3
    rows = sp.embedding(np.array([65537, 0]), table)
    assert_array_equal(rows, np.array([[3], [0]]) * np.ones((1, 32768)))
    mask = np.ones((65538, 1), bool)
    mask[65537] = False
    sp.apply_mask_(table, mask, pattern="row")
    assert not table[65537].any()


# ---- strides and alignment ----------------------------------------------------------------------


def misaligned(x: np.ndarray) -> np.ndarray:
    """The same values one byte off."""
    memory = np.zeros(x.nbytes + 1, np.uint8)
    view = memory[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


@pytest.mark.parametrize("name", CALLS)
def test_an_unaligned_array_works_or_is_refused_by_name(name: str) -> None:
    call = CALLS[name]
    expected = call(*(x.copy() for x in call.arrays))
    for i, x in enumerate(call.arrays):
        arrays = [a.copy() for a in call.arrays]
        arrays[i] = misaligned(x)
        got, error = result_or_refusal(call, arrays)
        if error is None:
            same(got, expected)
        else:
            assert error.startswith(f"{call.op}: ")
            assert "aligned" in error


def result_or_refusal(call: Call, arrays: list[np.ndarray]) -> tuple[Any, str | None]:
    """What the call returns, or the message of the ValueError that it raises."""
    try:
        return call(*arrays), None
    except ValueError as error:
        return None, str(error)


def same(got: Any, expected: Any) -> None:
    if isinstance(got, sp.SparseMatrix):
        got, expected = got.to_dense(), expected.to_dense()
    if isinstance(got, tuple):
        for a, b in zip(got, expected, strict=True):
            same(a, b)
    elif got is not None:
        assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis_strides", ["negative", "zero"])
@pytest.mark.parametrize("name", CALLS)
def test_strides_that_go_back_or_stand_still(name: str, axis_strides: str) -> None:
    """What an op reads may lie in memory in any way; it is what its values are."""
    call: Call = CALLS[name]
    for i, x in enumerate(call.arrays):
        if i in call.changes and axis_strides == "zero":
            continue
        copies = [a.copy() for a in call.arrays]
        if axis_strides == "negative":
            flip = (slice(None, None, -1),) * x.ndim
            view = x[flip].copy()[flip]
        else:
            view = np.broadcast_to(x[:1], x.shape)
        plain = list(copies)
        plain[i] = np.ascontiguousarray(view)
        expected = call(*(a.copy() for a in plain))
        copies[i] = view
        same(call(*copies), expected)


def test_an_output_whose_elements_share_memory_is_refused() -> None:
    w = np.lib.stride_tricks.as_strided(np.ones(31, np.float32), (16, 16), (4, 4))
    with pytest.raises(ValueError, match="group_shrink_: w has overlapping elements"):
        sp.group_shrink_(w, pattern="tile", strength=0.1)


# ---- a tier that does not run here --------------------------------------------------------------

REFUSED = """
import numpy as np, spatile as sp
from tests.ops.calls import attention_calls, group_calls, other_calls, second_order_calls

cpu = sp.info()["cpu"]
assert cpu["tier"] == "none", cpu
assert "SPATILE_CPU_TIER is 'nonsense'" in cpu["reason"], cpu
calls = attention_calls("float32") | group_calls("float32") | other_calls("float32")
calls |= second_order_calls("float32")
x = np.ones((3, 16), np.float32)
calls["linear"] = calls["gelu"]._replace(op="linear", arrays=(x, x))
calls["linear_backward"] = calls["gelu"]._replace(op="linear_backward", arrays=(x[:, :3], x, x))
for name, call in calls.items():
    try:
        call()
    except RuntimeError as error:
        assert str(error).startswith(f"{call.op}: SPATILE_CPU_TIER is 'nonsense'"), (name, error)
        assert all(tier in str(error) for tier in cpu["tiers"]), error
    else:
        raise AssertionError(name)
sp.device._set_cpu_tier("scalar")
for call in calls.values():
    call()
assert sp.info()["cpu"]["tier"] == "scalar"
print("refused")
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@of_the_cpu
def test_a_tier_that_does_not_run_here_is_refused_by_every_op() -> None:
    done = run(REFUSED, SPATILE_CPU_TIER="nonsense")
    assert done.stdout == "refused\n", done.stderr


def test_info_tells_of_a_tier_that_does_not_run_here() -> None:
    done = run(
        "import sys; from spatile.cli import main; sys.exit(main(['info']))", SPATILE_CPU_TIER="mmx"
    )
    assert done.returncode == 0, done.stderr
    assert "tier none (SPATILE_CPU_TIER is 'mmx', expected one that runs here: " in done.stdout


# ---- memory -------------------------------------------------------------------------------------

SHORT_OF_MEMORY = """
import resource, sys
import numpy as np, spatile as sp
from numpy.lib.stride_tricks import as_strided

sp.set_num_threads(2)


def claiming(*shape):
    return as_strided(np.ones(1, np.float32), shape, (0,) * len(shape))


def leave(megabytes):
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def fails(what, start, run):
    try:
        run()
    except MemoryError as error:
        assert str(error).startswith(start), (what, error)
        return
    raise AssertionError(what + " ran")


q = np.random.default_rng(0).standard_normal((1, 40, 2, 16), dtype=np.float32)
x, w = q.reshape(40, 32), np.eye(32, dtype=np.float32)
small = {
    "linear": lambda: sp.linear(x, w),
    "linear_backward": lambda: sp.linear_backward(x, x, w).x,
    "attention": lambda: sp.attention(q, q, q),
    "prune_mask": lambda: sp.prune_mask(x, pattern="tile", sparsity=0.5),
    "softmax": lambda: sp.softmax(x),
    "topk": lambda: sp.topk(x, 3).values,
}
before = {name: run() for name, run in small.items()}
wide, tall = claiming(16384, 16384), claiming(1, 4_000_000, 1, 64)
row, grad = np.zeros((1, 16384), np.float32), np.zeros((1, 16384), np.float32)
out, narrow = np.zeros((1, 40, 1, 64), np.float32), claiming(1, 40, 1, 64)
leave(300)
large = {
    "linear": lambda: sp.linear(row, wide, out=grad),
    "linear_backward": lambda: sp.linear_backward(row, row, wide, need=("x",)),
    "attention": lambda: sp.attention(narrow, tall, tall, out=out),
    "prune_mask": lambda: sp.prune_mask(wide, pattern="element", sparsity=0.5),
}
for _ in range(2):
    for name, run in large.items():
        fails(name, "" if name == "prune_mask" else name + ": no memory for a workspace", run)
    for name, run in small.items():
        assert (run() == before[name]).all(), name
print("goes on")
"""


@of_the_cpu
@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's here")
def test_running_out_of_memory_is_a_memory_error_and_no_more() -> None:
    done = run(SHORT_OF_MEMORY, OPENBLAS_NUM_THREADS="1")
    assert done.stdout == "goes on\n", done.stderr


KEPT_WORKSPACES = """
import resource
import numpy as np, spatile as sp

def size():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

sp.set_num_threads(1)
few, many = np.ones((16, 1024), np.float32), np.ones((1024, 1024), np.float32)
wide, wider = np.ones((4096, 1024), np.float32), np.ones((8704, 1024), np.float32)
out, last = np.empty((1024, 4096), np.float32), np.empty((16, 8704), np.float32)
limit = size() + (45 << 20)
for _ in range(2):
    sp.linear(many, wide, out=out)
for n in (3000, 2400):
    sp.linear(many[:64], wide[:n], out=np.empty((64, n), np.float32))
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sp.linear(few, wider, out=last)
assert (last == 1024).all()
"""


@of_the_cpu
@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's here")
def test_workspaces_that_were_kept_are_given_up_before_memory_lacks() -> None:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", KEPT_WORKSPACES], env=environment, check=True)
