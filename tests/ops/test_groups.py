"""Norms, the reweighted group lasso and its proximal step."""

from __future__ import annotations

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

from .arrays import DTYPES, assert_guards_intact, f64, guarded, normal, strided_copies, to_torch

pytestmark = pytest.mark.usefixtures("cpu_tier")

PATTERNS = ["tile", "tile:32x16", "tile:3x5", "row", "column", "element", "head:8", "head:8:in"]
SHAPES = [(1, 1), (16, 16), (15, 17), (64, 100), (33, 320), (100, 33)]
# Storage type: relative error of one rounding, with room for a float32 sum behind it.
ROUNDING = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}


def beta_for(shape: tuple[int, int], pattern: str) -> np.ndarray:
    return np.random.default_rng(4).random(as_pattern(pattern).mask_shape(shape)).astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norms_beta_and_penalty(shape: tuple[int, int], pattern: str, dtype: str) -> None:
    w, beta = normal(shape, dtype=dtype), beta_for(shape, pattern)
    norms = sp.group_norms(w, pattern=pattern)
    assert norms.dtype == np.float32
    assert norms.shape == as_pattern(pattern).mask_shape(shape)
    assert_allclose(norms, reference.group_norms(w, pattern=pattern), rtol=2e-6)
    got = sp.group_beta(w, pattern=pattern, eps=0.1)
    assert got.dtype == np.float32
    assert_allclose(got, reference.group_beta(w, pattern=pattern, eps=0.1), rtol=3e-6)
    assert_allclose(
        sp.group_beta(w, pattern=pattern), reference.group_beta(w, pattern=pattern), rtol=3e-6
    )
    for weights in (None, beta):
        penalty = sp.group_lasso(w, pattern=pattern, beta=weights)
        assert type(penalty) is float
        assert penalty == pytest.approx(
            reference.group_lasso(w, pattern=pattern, beta=weights), rel=1e-5
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_and_shrink(shape: tuple[int, int], pattern: str, dtype: str) -> None:
    w, beta = normal(shape, dtype=dtype), beta_for(shape, pattern)
    tolerance = ROUNDING[dtype]
    for weights in (None, beta):
        options: dict[str, Any] = {"pattern": pattern, "beta": weights, "strength": 0.7}
        exact = reference.group_lasso_grad(f64(w), **options)
        grad = sp.group_lasso_grad(w, **options)
        assert grad.dtype == w.dtype
        assert_allclose(f64(grad), exact, rtol=tolerance, atol=1e-7)
        start = normal(shape, seed=9, dtype=dtype)
        added = start.copy()
        assert sp.add_group_lasso_grad_(added, w, **options) is added
        assert_allclose(f64(added), f64(start) + exact, rtol=tolerance, atol=tolerance)
        shrunk = w.copy()
        assert sp.group_shrink_(shrunk, **options) is shrunk
        expected = reference.group_shrink_(f64(w), **options)
        assert_allclose(f64(shrunk), expected, rtol=4 * tolerance, atol=tolerance)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_zero_group_has_no_gradient_and_stays(pattern: str) -> None:
    w = normal((40, 40))
    rows, cols = as_pattern(pattern).group_shape(w.shape)
    w[:rows, :cols] = 0
    grad = sp.group_lasso_grad(w, pattern=pattern, strength=1.0)
    assert np.isfinite(grad).all()
    assert not grad[:rows, :cols].any()
    shrunk = sp.group_shrink_(w.copy(), pattern=pattern, strength=1e-3)
    assert np.isfinite(shrunk).all()
    assert not shrunk[:rows, :cols].any()


@pytest.mark.parametrize("scale", [1e-25, 1e-18, 1e18, 1e25])
def test_weights_whose_squares_leave_float32(scale: float) -> None:
    w = normal((33, 40), scale=scale)
    exact = reference.group_norms(w, pattern="tile")
    assert_allclose(sp.group_norms(w, pattern="tile"), exact, rtol=1e-5)
    grad = sp.group_lasso_grad(w, pattern="tile", strength=1.0)
    assert_allclose(
        grad, reference.group_lasso_grad(w, pattern="tile", strength=1.0), rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("pattern", ["tile", "row", "column", "tile:3x5", "head:8:in"])
def test_groups_of_every_size_side_by_side(pattern: str) -> None:
    """Each group is added in the range that it needs, whatever its neighbours hold."""
    sizes = np.array([1.0, 0.0, 1e-41, 1e-38, 1e-30, 1e-19, 1e-10, 1e10, 1e19, 1e30, 2e37])
    w = normal((96, 112))
    down, across = as_pattern(pattern).mask_shape(w.shape)
    scale = sizes[np.arange(down * across) % len(sizes)].reshape(down, across)
    rows, cols = as_pattern(pattern).group_shape(w.shape)
    w = (w * np.kron(scale, np.ones((rows, cols)))[:96, :112]).astype(np.float32)
    norms = reference.group_norms(w, pattern=pattern)
    with np.errstate(over="ignore"):
        in_float32 = norms.astype(np.float32)
    assert_allclose(sp.group_norms(w, pattern=pattern), in_float32, rtol=1e-6, atol=2e-45)
    options: dict[str, Any] = {"pattern": pattern, "strength": 0.5}
    exact = reference.group_lasso_grad(f64(w), **options)
    assert_allclose(sp.group_lasso_grad(w, **options), exact, rtol=2e-6, atol=2e-45)
    expected = reference.group_shrink_(f64(w), **options)
    shrunk = sp.group_shrink_(w.copy(), **options)
    assert_allclose(shrunk, expected, rtol=2e-5, atol=1e-6 * 0.5)


@pytest.mark.parametrize("strength", [1e-300, 1e-40, 1e-33, 1e33, 1e60])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_factors_that_leave_float32(strength: float, dtype: str) -> None:
    w = normal((33, 40), dtype=dtype)
    w[:16, :16] *= np.asarray(1e-30, w.dtype)
    options: dict[str, Any] = {"pattern": "tile", "strength": strength}
    exact = reference.group_lasso_grad(f64(w), **options)
    with np.errstate(over="ignore"):
        exact = exact.astype(w.dtype)
    got = sp.group_lasso_grad(w, **options)
    assert_allclose(f64(got), f64(exact), rtol=ROUNDING[dtype], atol=1e-40)


@pytest.mark.parametrize("offset", range(0, 20, 3))
def test_where_an_array_begins_changes_no_bit(offset: int) -> None:
    w = normal((48, 100))
    memory = np.zeros(w.size + 32, np.float32)
    moved = memory[offset : offset + w.size].reshape(w.shape)
    moved[...] = w
    for pattern in ("tile", "row", "column", "tile:5x7"):
        assert_array_equal(
            sp.group_norms(moved, pattern=pattern), sp.group_norms(w, pattern=pattern)
        )
        assert_array_equal(
            sp.group_lasso_grad(moved, pattern=pattern, strength=0.5),
            sp.group_lasso_grad(w, pattern=pattern, strength=0.5),
        )


def test_strength_zero_changes_nothing() -> None:
    w = normal((33, 40))
    assert_array_equal(sp.group_shrink_(w.copy(), pattern="tile", strength=0.0), w)
    assert not sp.group_lasso_grad(w, pattern="tile", strength=0.0).any()


@given(
    shape=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    pattern=st.sampled_from(PATTERNS),
    strength=st.floats(0, 20),
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from(list(DTYPES)),
)
def test_shrinking_never_grows_nor_flips_a_weight(
    shape: tuple[int, int], pattern: str, strength: float, seed: int, dtype: str
) -> None:
    w = normal(shape, seed=seed, dtype=dtype)
    shrunk = f64(sp.group_shrink_(w.copy(), pattern=pattern, strength=strength))
    assert (shrunk * f64(w) >= 0).all()
    assert (np.abs(shrunk) <= np.abs(f64(w)) * (1 + 1e-6)).all()
    before, after = (reference.group_norms(x, pattern=pattern) for x in (w, shrunk))
    assert_allclose(after, np.maximum(0, before - strength), rtol=2e-2, atol=2e-2 * before.max())


@given(strength=st.floats(0, 5), seed=st.integers(0, 1000))
def test_two_shrinks_are_one_of_their_sum(strength: float, seed: int) -> None:
    w = normal((20, 20), seed=seed)
    once = sp.group_shrink_(w.copy(), pattern="tile:4x4", strength=2 * strength)
    twice = w.copy()
    for _ in range(2):
        sp.group_shrink_(twice, pattern="tile:4x4", strength=strength)
    assert_allclose(twice, once, atol=2e-5)


def test_nan_and_infinity_stay_in_their_group() -> None:
    w = normal((32, 32))
    w[0, 0], w[20, 20] = np.nan, np.inf
    norms = sp.group_norms(w, pattern="tile")
    assert np.isnan(norms[0, 0])
    assert norms[1, 1] == np.inf
    assert np.isfinite(norms[[0, 1], [1, 0]]).all()
    grad = sp.group_lasso_grad(w, pattern="tile", strength=1.0)
    assert np.isfinite(grad[:16, 16:]).all()
    assert np.isfinite(grad[16:, :16]).all()


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)], ids=str)
@pytest.mark.parametrize("pattern", ["tile", "row", "column", "element"])
def test_matrices_without_weights(shape: tuple[int, int], pattern: str) -> None:
    w = np.zeros(shape, np.float32)
    assert sp.group_norms(w, pattern=pattern).shape == as_pattern(pattern).mask_shape(shape)
    assert sp.group_lasso(w, pattern=pattern) == 0.0
    assert sp.group_lasso_grad(w, pattern=pattern, strength=1.0).shape == shape


@pytest.mark.parametrize(
    "layout", ["every other", "column-major", "reversed", "part of a larger array"]
)
@pytest.mark.parametrize("pattern", ["tile", "row", "column"])
def test_strided(layout: str, pattern: str) -> None:
    w, grad = normal((33, 50)), normal((33, 50), seed=1)
    view, grad_view = strided_copies(w)[layout], strided_copies(grad)[layout]
    assert_allclose(
        sp.group_norms(view, pattern=pattern), sp.group_norms(w, pattern=pattern), rtol=1e-6
    )
    options: dict[str, Any] = {"pattern": pattern, "strength": 0.5}
    expected = sp.group_lasso_grad(w, **options)
    assert_allclose(sp.group_lasso_grad(view, **options), expected, rtol=1e-6)
    assert sp.add_group_lasso_grad_(grad_view, view, **options) is grad_view
    assert_allclose(grad_view, grad + expected, rtol=1e-5, atol=1e-6)
    assert sp.group_shrink_(view, **options) is view
    assert_allclose(view, reference.group_shrink_(f64(w), **options), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_in_torch_out(dtype: str) -> None:
    w = normal((33, 50), dtype=dtype)
    tensor, options = to_torch(w), {"pattern": "tile", "strength": 0.5}
    norms = sp.group_norms(tensor, pattern="tile")
    assert isinstance(norms, torch.Tensor)
    assert norms.dtype == torch.float32
    assert_array_equal(norms.numpy(), sp.group_norms(w, pattern="tile"))
    assert isinstance(sp.group_beta(tensor, pattern="tile"), torch.Tensor)
    grad = sp.group_lasso_grad(tensor, **options)
    assert isinstance(grad, torch.Tensor)
    assert grad.dtype == tensor.dtype
    assert_array_equal(f64(grad), f64(sp.group_lasso_grad(w, **options)))
    into = torch.zeros_like(tensor)
    assert sp.add_group_lasso_grad_(into, tensor, **options) is into
    assert_array_equal(f64(into), f64(grad))
    assert sp.group_shrink_(tensor, beta=norms, **options) is tensor
    expected = sp.group_shrink_(w.copy(), beta=norms.numpy(), **options)
    assert_array_equal(f64(tensor), f64(expected))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (17, 33), (64, 100)], ids=str)
def test_in_place_ops_write_nothing_around(shape: tuple[int, int], dtype: str) -> None:
    options: dict[str, Any] = {"pattern": "tile", "strength": 0.5}
    for op in ("shrink", "add"):
        w, memory = guarded(shape, DTYPES[dtype])
        w[...] = normal(shape, dtype=dtype)
        if op == "shrink":
            sp.group_shrink_(w, **options)
        else:
            sp.add_group_lasso_grad_(w, normal(shape, seed=1, dtype=dtype), **options)
        assert_guards_intact(memory)
