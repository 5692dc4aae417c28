"""sp.pack and the products on a SparseMatrix, for every pattern."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import spatile as sp
from spatile import reference
from spatile.patterns import as_pattern

from . import plain
from .arrays import DTYPES, assert_accurate, f64, normal, strided_copies, to_torch

pytestmark = pytest.mark.usefixtures("cpu_tier")

PATTERNS = [
    "tile",
    "tile:32x16",
    "tile:8x8",
    "tile:5x7",
    "tile:1x16",
    "tile:16x1",
    "row",
    "column",
    "element",
    "head:8",
    "head:8:in",
]
SHAPES = [(16, 16), (1, 1), (15, 33), (64, 100), (100, 64), (48, 17), (33, 320)]


@cache
def matrix(
    shape: tuple[int, int], pattern: str, sparsity: float = 0.6, dtype: str = "float32"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, a mask for them, and the dense matrix that both mean."""
    w = normal(shape, seed=1, dtype=dtype, scale=shape[1] ** -0.5)
    mask = reference.prune_mask(f64(w), pattern=pattern, sparsity=sparsity)
    return w, mask, reference.pack(w, mask, pattern=pattern)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pack_keeps_what_the_mask_keeps(shape: tuple[int, int], pattern: str, dtype: str) -> None:
    w, mask, dense = matrix(shape, pattern, dtype=dtype)
    packed = sp.pack(w, mask, pattern=pattern)
    kept = int(reference.expand_mask(mask, shape, pattern=pattern).sum())
    assert packed.shape == shape
    assert packed.pattern == as_pattern(pattern)
    assert packed.nnz == kept
    assert packed.sparsity == pytest.approx(1 - kept / w.size)
    assert packed.nbytes > 0
    assert_array_equal(f64(packed.to_dense()), dense)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pack_without_a_mask_is_dense(pattern: str) -> None:
    w = normal((33, 50))
    packed = sp.pack(w, pattern=pattern)
    assert packed.nnz == w.size
    assert packed.sparsity == 0
    assert_array_equal(packed.to_dense(), w)


def test_pack_is_by_tiles_unless_told() -> None:
    assert sp.pack(normal((32, 32))).pattern == sp.Tile(16, 16)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pack_of_nothing_kept(pattern: str) -> None:
    w = normal((20, 40))
    mask = np.zeros(as_pattern(pattern).mask_shape(w.shape), bool)
    packed = sp.pack(w, mask, pattern=pattern)
    assert packed.nnz == 0
    assert packed.sparsity == 1
    assert not packed.to_dense().any()
    x, bias = normal((3, 40), seed=2), normal((20,), seed=3)
    assert_array_equal(sp.linear(x, packed, bias=bias), np.broadcast_to(bias, (3, 20)))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_kept_zero_is_still_kept(pattern: str) -> None:
    """Zero weights in a kept group can be trained away from zero: they are stored."""
    w = np.zeros((32, 32), np.float32)
    assert sp.pack(w, pattern=pattern).nnz == w.size


@pytest.mark.parametrize("pattern", ["tile", "row", "column", "element"])
def test_dropped_weights_are_not_read_again(pattern: str) -> None:
    """NaN in a pruned group is gone."""
    w, mask, dense = (x.copy() for x in matrix((64, 100), pattern))
    w[~reference.expand_mask(mask, w.shape, pattern=pattern)] = np.nan
    packed = sp.pack(w, mask, pattern=pattern)
    assert_array_equal(packed.to_dense(), dense)
    x = normal((5, 100), seed=2)
    assert_allclose(sp.linear(x, packed), reference.linear(x, dense), atol=1e-5)


def test_a_packed_matrix_is_frozen_and_its_own() -> None:
    w, mask, dense = (x.copy() for x in matrix((64, 100), "tile"))
    packed = sp.pack(w, mask)
    w[...] = 7
    mask[...] = True
    assert_array_equal(packed.to_dense(), dense)
    with pytest.raises((dataclasses.FrozenInstanceError, AttributeError)):
        packed.shape = (1, 1)


def test_pack_saves_memory() -> None:
    w, mask, _ = matrix((320, 320), "tile", 0.8)
    assert sp.pack(w, mask).nbytes < 0.35 * w.nbytes


@pytest.mark.parametrize(
    "layout", ["every other", "column-major", "reversed", "part of a larger array"]
)
def test_pack_strided_and_torch(layout: str) -> None:
    w, mask, dense = matrix((48, 17), "tile")
    got = sp.pack(strided_copies(w)[layout], strided_copies(mask)[layout])
    assert_array_equal(got.to_dense(), dense)
    assert_array_equal(f64(sp.pack(to_torch(w), torch.from_numpy(mask.copy())).to_dense()), dense)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_over_patterns(shape: tuple[int, int], pattern: str, dtype: str) -> None:
    w, mask, dense = matrix(shape, pattern, dtype=dtype)
    packed = sp.pack(w, mask, pattern=pattern)
    x, bias = normal((19, shape[1]), seed=2, dtype=dtype), normal((shape[0],), seed=3, dtype=dtype)
    residual = normal((19, shape[0]), seed=4, dtype=dtype)
    got = sp.linear(x, packed, bias=bias, activation="gelu", residual=residual)
    assert got.dtype == DTYPES[dtype]
    exact = reference.linear(
        f64(x), dense, bias=f64(bias), activation="gelu", residual=f64(residual)
    )
    same_type = plain.linear(
        x, dense.astype(DTYPES[dtype]), bias=bias, activation="gelu", residual=residual
    )
    assert_accurate(got, same_type, exact, dtype)


@pytest.mark.parametrize("rows", [0, 1, 2, 15, 16, 17, 23, 24, 25, 33, 64, 100, 500])
@pytest.mark.parametrize("pattern", ["tile", "row", "column", "element"])
def test_linear_over_row_counts(rows: int, pattern: str) -> None:
    w, mask, dense = matrix((64, 100), pattern)
    x = normal((rows, 100), seed=2)
    got = sp.linear(x, sp.pack(w, mask, pattern=pattern))
    assert_allclose(got, reference.linear(x, dense).reshape(rows, 64), atol=1e-5)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("shape", [(128, 3072), (768, 128)], ids=str)
def test_linear_of_wide_matrices(shape: tuple[int, int], sparsity: float) -> None:
    w, mask, dense = matrix(shape, "tile", sparsity)
    x = normal((33, shape[1]), seed=2)
    assert_allclose(sp.linear(x, sp.pack(w, mask)), reference.linear(x, dense), atol=2e-5)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((576, 2528), "float32"), ((1088, 5344), "bfloat16")], ids=str
)
def test_linear_of_matrices_that_are_wide_and_tall(shape: tuple[int, int], dtype: str) -> None:
    """A GPU's blocks hold x in parts and have several rounds of strips: x comes more than once."""
    rng = np.random.default_rng(0)
    w = np.zeros(shape, DTYPES[dtype])
    keep = rng.random(as_pattern("tile").mask_shape(shape)) < 0.03
    for i, j in zip(*np.nonzero(keep), strict=True):
        w[16 * i : 16 * i + 16, 16 * j : 16 * j + 16] = rng.standard_normal((16, 16))
    x = normal((3, shape[1]), seed=2, dtype=dtype)
    got = sp.linear(x, sp.pack(w, keep, dtype=dtype))
    exact = f64(x) @ f64(w).T
    close = {"float32": 2e-5, "bfloat16": 5e-2}[dtype]
    assert_allclose(f64(got), exact, atol=close * np.abs(exact).max())


def test_a_pruned_row_still_has_its_bias_activation_and_residual() -> None:
    w, mask, _ = matrix((48, 17), "row", 0.7)
    x, bias, residual = normal((5, 17), seed=2), normal((48,), seed=3), normal((5, 48), seed=4)
    options = {"bias": bias, "activation": "gelu", "residual": residual}
    got = sp.linear(x, sp.pack(w, mask, pattern="row"), **options)
    dropped = ~mask[:, 0]
    assert_allclose(got[:, dropped], (reference.gelu(bias) + residual)[:, dropped], atol=1e-6)


@pytest.mark.parametrize("pattern", ["tile", "row", "column", "element"])
def test_nan_in_x_counts_only_where_weights_are_kept(pattern: str) -> None:
    """A finite product of kept weights; NaN in x never crashes."""
    w, mask, _ = matrix((64, 100), pattern)
    x = normal((4, 100), seed=2)
    x[1] = np.nan
    got = sp.linear(x, sp.pack(w, mask, pattern=pattern))
    kept_rows = reference.expand_mask(mask, w.shape, pattern=pattern).any(axis=1)
    assert np.isnan(got[1, kept_rows]).all()
    assert np.isfinite(got[[0, 2, 3]]).all()


@pytest.mark.parametrize("pattern", ["tile", "row", "column", "element"])
def test_leading_axes_strided_torch_and_out(pattern: str) -> None:
    w, mask, dense = matrix((64, 100), pattern)
    packed = sp.pack(w, mask, pattern=pattern)
    x = normal((2, 3, 100), seed=2)
    exact = reference.linear(x, dense)
    for view in (x, *strided_copies(x).values()):
        assert_allclose(sp.linear(view, packed), exact, atol=1e-5)
    tensor = sp.linear(to_torch(x), packed)
    assert isinstance(tensor, torch.Tensor)
    assert_allclose(tensor.numpy(), exact, atol=1e-5)
    out = np.full((2, 3, 64), np.nan, np.float32)
    assert sp.linear(x, packed, out=out) is out
    assert_allclose(out, exact, atol=1e-5)


def value_positions(w: np.ndarray, mask: np.ndarray, pattern: str) -> np.ndarray:
    """For each element of ``.values``, 1 + its flat position in the matrix; 0 where it has none."""
    numbered = np.arange(1, w.size + 1, dtype=np.float32).reshape(w.shape)
    return np.asarray(sp.pack(numbered, mask, pattern=pattern).values).astype(np.int64)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_hold_each_kept_weight_once(shape: tuple[int, int], pattern: str) -> None:
    w, mask, _ = matrix(shape, pattern)
    positions = value_positions(w, mask, pattern)
    kept = np.flatnonzero(reference.expand_mask(mask, shape, pattern=pattern)) + 1
    assert_array_equal(np.sort(positions[positions > 0]), kept)
    values = f64(sp.pack(w, mask, pattern=pattern).values)
    assert_array_equal(values[positions > 0], f64(w).ravel()[positions[positions > 0] - 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_backward_over_patterns(shape: tuple[int, int], pattern: str, dtype: str) -> None:
    w, mask, dense = matrix(shape, pattern, dtype=dtype)
    packed = sp.pack(w, mask, pattern=pattern)
    x = normal((21, shape[1]), seed=2, dtype=dtype)
    grad = normal((21, shape[0]), seed=3, dtype=dtype)
    got = sp.linear_backward(grad, x, packed)
    exact = reference.linear_backward(f64(grad), f64(x), dense)
    grad_t, x_t, w_t = to_torch(grad), to_torch(x), to_torch(dense.astype(DTYPES[dtype]))
    assert_accurate(got.x, plain.product(grad_t, w_t), exact.x, dtype)
    assert_accurate(got.bias, grad_t.sum(0), exact.bias, dtype)
    positions = value_positions(w, mask, pattern)
    assert got.w.shape == positions.shape
    stored = positions > 0
    index = positions[stored] - 1
    same_type = f64(plain.product(grad_t.T, x_t)).ravel()[index]
    assert_accurate(f64(got.w)[stored], same_type, exact.w.ravel()[index], dtype)
    assert not f64(got.w)[~stored].any(), "a pruned group has no gradient"


@pytest.mark.parametrize("need", [("x",), ("w",), ("bias",), ()])
def test_linear_backward_gives_what_is_needed(need: tuple[str, ...]) -> None:
    w, mask, _ = matrix((48, 17), "tile")
    got = sp.linear_backward(normal((3, 48)), normal((3, 17)), sp.pack(w, mask), need=need)
    for name in ("x", "w", "bias"):
        assert (getattr(got, name) is not None) == (name in need)


@given(
    out=st.integers(1, 70),
    width=st.integers(1, 70),
    rows=st.integers(0, 40),
    pattern=st.sampled_from(["tile", "tile:8x8", "row", "column", "element", "head:8"]),
    keep=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_any_mask_of_any_shape(
    out: int, width: int, rows: int, pattern: str, keep: float, seed: int
) -> None:
    w, x = normal((out, width), seed=seed), normal((rows, width), seed=seed + 1)
    grad = normal((rows, out), seed=seed + 2)
    mask = np.random.default_rng(seed).random(as_pattern(pattern).mask_shape((out, width))) < keep
    packed = sp.pack(w, mask, pattern=pattern)
    dense = reference.pack(w, mask, pattern=pattern)
    assert_array_equal(packed.to_dense(), dense)
    assert_allclose(sp.linear(x, packed), x.astype(np.float64) @ dense.T, atol=1e-4)
    got: Any = sp.linear_backward(grad, x, packed, need=("x",))
    assert_allclose(got.x, grad.astype(np.float64) @ dense, atol=1e-4)
