"""SPATILE_DEVICE: host arrays are computed on a GPU, and all that one sees of it is the speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.device.conftest import Run

EMULATED = "cuda-on-cpu"


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:1x", "CUDA", "cuda:99999999"])
def test_values_that_name_no_device(run: Run, device: str) -> None:
    done = run("sp.gelu(x)", SPATILE_DEVICE=device)
    assert f"RuntimeError: gelu: SPATILE_DEVICE is '{device}', expected" in done.stderr


def test_a_device_that_is_not_there(run: Run, tmp_path: Path) -> None:
    done = run("sp.gelu(x)", SPATILE_DEVICE="cuda:5")
    assert "SPATILE_DEVICE is 'cuda:5': cuda: there is no cuda:5" in done.stderr
    nowhere = str(tmp_path / "no.so")
    done = run("sp.gelu(x)", SPATILE_DEVICE="cuda", SPATILE_CUDA_LIBRARY=nowhere)
    assert "SPATILE_DEVICE is 'cuda': cuda: no library at" in done.stderr


@pytest.mark.parametrize("device", ["", "cpu"])
def test_the_cpu(run: Run, device: str) -> None:
    code = "sp.gelu(x); print('libspatile' in open('/proc/self/maps').read())"
    assert run(code, SPATILE_DEVICE=device).stdout == "False\n"


def test_results_are_the_same_kind_and_inputs_stay(run: Run) -> None:
    code = """
import os
before = x.copy()
y = sp.gelu(x)
assert type(y) is np.ndarray and (x == before).all()
assert 'libspatile_cuda_on_cpu' in open('/proc/self/maps').read()
print(abs(y - sp.reference.gelu(x)).max() < 1e-6)
"""
    done = run("import spatile.reference\n" + code, SPATILE_DEVICE=EMULATED)
    assert done.stdout == "True\n", done.stderr


def test_strides_overlaps_and_what_lies_between(run: Run) -> None:
    code = """
from spatile import _core
base = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
views = base[::2, ::3], base[::-1, ::-2], base.T[3:, ::-1], base[:, 1:], base[3:3], base[1, 1:2]
for view in views:
    assert abs(sp.gelu(view) - sp.reference.gelu(view)).max(initial=0) < 1e-6
whole = base.copy()
_core.gelu(whole[:, ::2], False, whole[:, 1::2])  # interleaved: one copy serves both
assert (whole[:, ::2] == base[:, ::2]).all()
assert abs(whole[:, 1::2] - sp.reference.gelu(base[:, ::2])).max() < 1e-6
guarded = np.full((10, 16), 7, np.float32)
_core.gelu(base[:, :4], False, guarded[1:9, 2:6])
assert (guarded[0] == 7).all() and (guarded[9] == 7).all() and (guarded[:, 6:] == 7).all()
shifted = np.frombuffer(bytearray(4 * 33), np.float32)[1:]
assert abs(sp.gelu(shifted) - 0).max() == 0
print('done')
"""
    done = run("import spatile.reference\n" + code, SPATILE_DEVICE=EMULATED)
    assert done.stdout == "done\n", done.stderr


def test_refused_calls_leave_all_as_it_was(run: Run) -> None:
    code = """
free = lambda: sp.info()['gpu']['devices'][0]['free_memory']
out = np.full((4, 4), 3, np.float32)
sp.gelu(x); before = free()
for _ in range(50):
    try: sp.linear(x, np.ones((4, 8), np.float32), bias=np.ones(5, np.float32), out=out)
    except ValueError as e: told = str(e)
print(told, (out == 3).all(), before == free())
"""
    done = run(code, SPATILE_DEVICE=EMULATED)
    assert done.stdout == "linear: bias.shape[0] is 5, expected 4 True True\n", done.stderr


def test_packed_weights_go_there_for_the_call(run: Run) -> None:
    code = """
w = np.random.default_rng(0).standard_normal((48, 32)).astype(np.float32)
a = np.random.default_rng(1).standard_normal((5, 32)).astype(np.float32)
for pattern in ('tile', 'element'):
    m = sp.pack(w, sp.prune_mask(w, pattern=pattern, sparsity=0.5), pattern=pattern)
    assert abs(sp.linear(a, m) - a @ m.to_dense().T).max() < 1e-4
    m.values[...] *= 2  # float32 values may change between calls
    assert abs(sp.linear(a, m) - a @ m.to_dense().T).max() < 1e-4
print('done')
"""
    done = run(code, SPATILE_DEVICE=EMULATED)
    assert done.stdout == "done\n", done.stderr


def test_an_op_that_is_not_supported_there(run: Run) -> None:
    code = "sp.second_order_prune(x, np.eye(8, dtype=np.float32), pattern='column', sparsity=0.5)"
    done = run(code, SPATILE_DEVICE=EMULATED)
    assert "NotImplementedError: second_order_prune: the cuda" in done.stderr
    assert "backend does not support this op" in done.stderr
