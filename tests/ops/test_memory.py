"""Memory, asked of every op: inputs as they were, no leak, no access beside an array."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import spatile as sp
from spatile import reference

from .arrays import DTYPES, normal
from .calls import all_calls

REPOSITORY = Path(__file__).resolve().parents[2]
CALLS = list(all_calls())


@pytest.mark.usefixtures("cpu_tier")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CALLS)
def test_inputs_are_unmodified(name: str, dtype: str) -> None:
    call = all_calls(dtype)[name]
    options = [x for x in call.options.values() if isinstance(x, np.ndarray)]
    inputs = [x for n, x in enumerate(call.arrays) if n not in call.changes] + options
    before = [x.tobytes() for x in inputs]
    for x in inputs:
        x.setflags(write=False)
    call()
    assert [x.tobytes() for x in inputs] == before


@pytest.mark.parametrize("name", CALLS)
def test_no_reference_is_kept_and_none_lost(name: str) -> None:
    call = all_calls()[name]
    objects = [*call.arrays, *call.options.values()]
    call()
    # Shared constants (small integers, dtypes) are counted by others too: arrays only.
    arrays = [x for x in objects if isinstance(x, np.ndarray)]
    before = [sys.getrefcount(x) for x in arrays]
    for _ in range(20):
        call()
    assert [sys.getrefcount(x) for x in arrays] == before


@pytest.mark.parametrize(
    "op", ["linear", "attention", "softmax", "group_norms", "topk", "embedding", "gather_tokens"]
)
def test_a_refused_call_keeps_no_reference(op: str) -> None:
    wrong = np.zeros((3, 3), np.complex64)
    arguments = {
        "linear": (wrong, wrong),
        "attention": (wrong, wrong, wrong),
        "topk": (wrong, 1),
        "embedding": (wrong, wrong),
        "gather_tokens": (wrong, wrong),
    }.get(op, (wrong,))
    options = {"pattern": "tile"} if op == "group_norms" else {}
    before = sys.getrefcount(wrong)
    for _ in range(20):
        with pytest.raises((TypeError, ValueError)):
            getattr(sp, op)(*arguments, **options)
    assert sys.getrefcount(wrong) == before


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path]),
        **variables,
    }
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=REPOSITORY,
        timeout=300,
    )


LEAK = """
import ctypes, gc, os, sys
from tests.ops.calls import all_calls

# Freed pages go back first, or a leak would hide in what an earlier op has freed.
trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)

def resident():
    trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def repeat(call, n):
    start = [x.copy() for x in call.arrays]
    for _ in range(n):
        for number in call.changes:
            call.arrays[number][...] = start[number]
        call()
        try:
            call(*(None for _ in call.arrays))
        except (TypeError, ValueError):
            pass
    gc.collect()

for name, call in all_calls().items():
    repeat(call, 50)
    memory, blocks = [resident()], [sys.getallocatedblocks()]
    for _ in range(3):
        repeat(call, 400)
        memory.append(resident())
        blocks.append(sys.getallocatedblocks())
    typical = [sorted(b - a for a, b in zip(x, x[1:]))[1] for x in (memory, blocks)]
    print(name, *typical, sep="\\t")
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
def test_thousands_of_calls_leak_nothing() -> None:
    """Each op 1250 times, and as often refused, in a process of their own.

    An allocator may grow once; a leak grows again and again. What counts is the median growth of
    three batches of 400: 52 bytes a call would be 20 KB, one Python object a call 400 blocks.
    """
    done = run(LEAK)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert {name for name, _, _ in rows} == set(CALLS)
    leaks = [row for row in rows if int(row[1]) >= 20_000 or int(row[2]) >= 200]
    assert leaks == []


BORDER = """
import ctypes, mmap, sys
import numpy as np
from tests.ops.calls import all_calls

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
kept = []

def at_border(x, end):
    \"\"\"A copy of x that ends where (or begins after) memory that must not be touched.\"\"\"
    page = mmap.PAGESIZE
    pages = -(-x.nbytes // page)
    memory = mmap.mmap(-1, (pages + 2) * page)
    kept.append(memory)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for forbidden in (0, pages + 1):
        assert libc.mprotect(base + forbidden * page, page, 0) == 0
    start = (pages + 1) * page - x.nbytes if end else page
    copy = np.frombuffer(memory, x.dtype, x.size, start).reshape(x.shape)
    copy[...] = x
    return copy

for dtype in ("float32", "float16", "bfloat16"):
    for end in (True, False):
        for name, call in all_calls(dtype).items():
            print(name, dtype, "end" if end else "start", flush=True)
            options = {
                key: at_border(x, end) if isinstance(x, np.ndarray) else x
                for key, x in call.options.items()
            }
            call._replace(options=options)(*(at_border(x, end) for x in call.arrays))
print("all")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pages are protected through libc's mprotect")
@pytest.mark.parametrize("tier", sp.info()["cpu"]["tiers"])
def test_nothing_is_touched_beside_the_arrays(tier: str) -> None:
    """Every array ends, then begins, at a page that kills the process when read or written."""
    done = run(BORDER, SPATILE_CPU_TIER=tier)
    last = done.stdout.splitlines()[-1:] or ["nothing"]
    assert done.returncode == 0, f"died in: {last[0]}\n{done.stderr}"
    assert last == ["all"]


def test_out_that_shares_memory_with_an_input_is_refused() -> None:
    x = np.ones((4, 16, 2, 8), np.float32)
    with pytest.raises(ValueError, match="attention: out shares memory with q"):
        sp.attention(x, x.copy(), x.copy(), out=x)
    rows = np.ones((9, 16), np.float32)
    y, bias = x[:1].copy(), np.zeros((1, 2, 16, 16), np.float32)
    for name in ("mask", "bias"):
        given = bias if name == "bias" else bias.view(bool)[..., :16]
        out = bias.reshape(-1)[:256].reshape(1, 16, 2, 8)
        with pytest.raises(ValueError, match=f"attention: out shares memory with {name}"):
            sp.attention(y, y.copy(), y.copy(), out=out, **{name: given})
    with pytest.raises(ValueError, match="linear: out shares memory with x"):
        sp.linear(rows[:8], np.eye(16, dtype=np.float32), out=rows[1:])
    with pytest.raises(ValueError, match="linear: out shares memory with residual"):
        sp.linear(rows[:8], np.eye(16, dtype=np.float32), residual=x[0, :8].reshape(8, 16),
                  out=x[0, :8].reshape(8, 16))  # fmt: skip
    frozen = np.zeros((9, 16), np.float32)
    frozen.setflags(write=False)
    with pytest.raises(ValueError, match="linear: out is read-only"):
        sp.linear(rows, np.eye(16, dtype=np.float32), out=frozen)


def test_index_arrays_are_copied_before_they_are_checked() -> None:
    """Another thread that changes offsets during a call must not move reads out of bounds."""
    q = np.ones((64, 2, 8), np.float32)
    offsets = np.array([0, 32, 64])
    stop = threading.Event()

    def spoil() -> None:
        while not stop.is_set():
            offsets[1] = 10**9
            offsets[1] = 32

    thread = threading.Thread(target=spoil)
    thread.start()
    try:
        for _ in range(500):
            with contextlib.suppress(ValueError):
                assert np.isfinite(sp.attention(q, q, q, offsets=offsets)).all()
    finally:
        stop.set()
        thread.join()


def test_a_gradient_in_the_weights_memory_is_refused_unless_it_is_the_weight() -> None:
    w = normal((32, 32))
    with pytest.raises(ValueError, match="add_group_lasso_grad_: grad shares memory with w"):
        sp.add_group_lasso_grad_(w.T, w, pattern="tile", strength=1.0)
    expected = w + reference.group_lasso_grad(w, pattern="tile", strength=1.0)
    sp.add_group_lasso_grad_(w[:], w, pattern="tile", strength=1.0)
    np.testing.assert_allclose(w, expected, rtol=1e-5)
