"""sp.linear in bfloat16, and weights stored in 16 bits.

Products of bfloat16 are exact in float32, so the oracle is float64 on rounded operands, and what is
left is the error of float32 sums.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import spatile as sp
from spatile import reference

from .arrays import DTYPES, assert_guards_intact, f64, guarded, normal, strided_copies, to_torch

pytestmark = pytest.mark.usefixtures("cpu_tier")

SHAPES = [(1, 1, 1), (1, 2, 16), (5, 33, 17), (19, 64, 48), (50, 100, 80), (200, 128, 130),
          (33, 17, 15), (7, 3072, 48)]  # fmt: skip
PATTERNS = ["tile", "tile:4x6", "tile:32x16", "row", "column"]


def rounded(x: np.ndarray) -> np.ndarray:
    return f64(x.astype(ml_dtypes.bfloat16))


def assert_near(got: np.ndarray, want: np.ndarray, bits: int = 20) -> None:
    scale = max(1e-3, np.abs(want).max())
    assert np.abs(f64(got) - want).max() <= scale * 2.0**-bits


def operands(shape: tuple[int, int, int], pattern: str) -> tuple[np.ndarray, ...]:
    n, width, out = shape
    x, w = normal((n, width), seed=1), normal((out, width), seed=2, scale=width**-0.5)
    return x, w, sp.prune_mask(w, pattern=pattern, sparsity=0.6)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_rounded_operands(shape: tuple[int, int, int], pattern: str) -> None:
    x, w, mask = operands(shape, pattern)
    bias, residual = normal(shape[2:], seed=3), normal((shape[0], shape[2]), seed=4)
    packed = sp.pack(w, mask, pattern=pattern)
    want = reference.linear(
        rounded(x), rounded(packed.to_dense()), bias=bias, activation="gelu", residual=residual
    )
    for weights in (packed, packed.to_dense(), sp.pack(w, mask, pattern=pattern, dtype="bfloat16")):
        got = sp.linear(
            x, weights, bias=bias, activation="gelu", residual=residual, compute="bfloat16"
        )
        assert got.dtype == np.float32
        assert_near(got, want)


@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "relu", "tanh"])
def test_activations(activation: str | None) -> None:
    x, w, mask = operands((40, 64, 48), "tile")
    packed = sp.pack(w, mask, dtype="bfloat16")
    got = sp.linear(x, packed, activation=activation, compute="bfloat16")
    assert_near(got, reference.linear(rounded(x), f64(packed.to_dense()), activation=activation))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_storage_in_16_bits(pattern: str, dtype: str) -> None:
    x, w, mask = operands((50, 100, 80), pattern)
    packed = sp.pack(w, mask, pattern=pattern, dtype=dtype)
    dense = sp.pack(w, mask, pattern=pattern).to_dense()
    assert packed.dtype == dtype
    assert_array_equal(packed.to_dense(), f64(dense.astype(DTYPES[dtype])))
    assert packed.values.nbytes == 2 * packed.values.size
    # Without being asked nothing is rounded once more.
    want = reference.linear(x, packed.to_dense())
    assert_near(sp.linear(x, packed), want)
    assert_near(sp.linear(x, packed, compute="float32"), want)
    assert not np.array_equal(sp.linear(x, packed, compute="bfloat16"), sp.linear(x, packed))
    grads = sp.linear_backward(normal((50, 80), seed=5), x, packed)
    full = sp.pack(packed.to_dense(), mask, pattern=pattern)
    want_grads = sp.linear_backward(normal((50, 80), seed=5), x, full)
    assert_near(grads.x, f64(want_grads.x))
    assert_near(grads.w, f64(want_grads.w))


def test_values_in_16_bits_are_read_only() -> None:
    _, w, mask = operands((5, 33, 17), "tile")
    with pytest.raises(ValueError, match="read-only"):
        sp.pack(w, mask, dtype="bfloat16").values[:] = 0


def test_values_in_16_bits_are_the_matrix_s_own() -> None:
    x, w, mask = operands((5, 33, 17), "tile")
    packed = sp.pack(w, mask, dtype="float16")
    given = packed.values.copy()
    same = sp.SparseMatrix(packed.shape, packed.pattern, packed.nnz, given, packed.index)
    before = [sp.linear(x, same, compute=c) for c in ("float32", "bfloat16")]
    given[:] = 0
    for compute, result in zip(("float32", "bfloat16"), before, strict=True):
        assert_array_equal(sp.linear(x, same, compute=compute), result)


def test_a_matrix_follows_the_tier_that_is_chosen() -> None:
    """What was prepared for one tier's kernels is not what another one multiplies with."""
    x, w, mask = operands((50, 100, 80), "tile")
    packed = sp.pack(w, mask, dtype="bfloat16")
    here = sp.info()["cpu"]["tier"]
    first = sp.linear(x, packed, compute="bfloat16")
    sp.device._set_cpu_tier("scalar")
    try:
        used = sp.linear(x, packed, compute="bfloat16")
        fresh = sp.linear(x, sp.pack(w, mask, dtype="bfloat16"), compute="bfloat16")
    finally:
        sp.device._set_cpu_tier(here)
    assert_array_equal(used, fresh)
    assert_array_equal(sp.linear(x, packed, compute="bfloat16"), first)


def test_changed_float32_values_count_in_the_next_product() -> None:
    x, w, mask = operands((19, 64, 48), "tile")
    packed = sp.pack(w, mask)
    before = sp.linear(x, packed, compute="bfloat16")
    packed.values[:] *= 2
    assert_array_equal(sp.linear(x, packed, compute="bfloat16"), 2 * before)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_arrays_in_bfloat16_lose_nothing_more(kind: str) -> None:
    x, w, mask = operands((50, 100, 80), "tile")
    half = x.astype(ml_dtypes.bfloat16)
    packed = sp.pack(w, mask, dtype="bfloat16")
    want = reference.linear(f64(half), f64(packed.to_dense()))
    given_x = half if kind == "numpy" else to_torch(half)
    for compute in (None, "float32", "bfloat16"):
        got = sp.linear(given_x, packed, compute=compute)
        assert str(got.dtype).endswith("bfloat16")
        if kind == "torch":
            assert isinstance(got, torch.Tensor)
            got = got.float().numpy()
        assert_near(got, want, bits=8)


def test_strided_and_offset_rows() -> None:
    x, w, mask = operands((19, 64, 48), "tile")
    half, packed = x.astype(ml_dtypes.bfloat16), sp.pack(w, mask, dtype="bfloat16")
    want = f64(sp.linear(np.ascontiguousarray(half), packed))
    for view in strided_copies(half).values():
        assert_array_equal(f64(sp.linear(view, packed)), want)
    odd = np.zeros((19, 67), ml_dtypes.bfloat16)
    odd[:, 3:] = half
    assert_array_equal(f64(sp.linear(odd[:, 3:], packed)), want)


def test_not_a_number_stays_in_its_row() -> None:
    x, w, _ = operands((40, 33, 17), "tile")
    x[3, 32] = np.nan
    got = sp.linear(x, w, compute="bfloat16")
    assert np.isnan(got[3]).all()
    assert np.isfinite(np.delete(got, 3, axis=0)).all()


def test_nothing_is_written_beside_out() -> None:
    x, w, mask = operands((17, 33, 15), "tile")
    packed = sp.pack(w, mask, dtype="bfloat16")
    out, memory = guarded((17, 15), np.float32)
    sp.linear(x, packed, compute="bfloat16", out=out)
    assert_guards_intact(memory)
    assert_array_equal(out, sp.linear(x, packed, compute="bfloat16"))


@given(
    rows=st.integers(1, 70), width=st.integers(1, 90), out=st.integers(1, 70),
    pattern=st.sampled_from(PATTERNS), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(rows: int, width: int, out: int, pattern: str, seed: int) -> None:
    x, w = normal((rows, width), seed=seed), normal((out, width), seed=seed + 1)
    mask = sp.prune_mask(w, pattern=pattern, sparsity=0.5)
    packed = sp.pack(w, mask, pattern=pattern, dtype="bfloat16")
    got = sp.linear(x, packed, compute="bfloat16")
    assert_near(got, reference.linear(rounded(x), f64(packed.to_dense())))


def test_single_elements_are_multiplied_in_float32() -> None:
    x, w, mask = operands((19, 64, 48), "element")
    packed = sp.pack(w, mask, pattern="element")
    assert_array_equal(sp.linear(x, packed, compute="bfloat16"), sp.linear(x, packed))
    with pytest.raises(NotImplementedError, match="expected 'float32' for single elements"):
        sp.pack(w, mask, pattern="element", dtype="bfloat16")


def test_names_that_do_not_exist() -> None:
    x, w, mask = operands((5, 33, 17), "tile")
    with pytest.raises(ValueError, match="linear: compute is 'int8', expected None, 'float32'"):
        sp.linear(x, w, compute="int8")
    with pytest.raises(ValueError, match="pack: dtype is 'int8', expected 'float32'"):
        sp.pack(w, mask, dtype="int8")
