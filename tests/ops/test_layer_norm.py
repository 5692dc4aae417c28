"""sp.layer_norm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import spatile as sp
from spatile import reference

from .arrays import DTYPES, assert_accurate, f64, normal, strided_copies, to_torch

pytestmark = pytest.mark.usefixtures("cpu_tier")


def parameters(width: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    return normal((width,), seed=2, dtype=dtype), normal((width,), seed=3, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 33, 64, 100, 384, 500, 3072])
def test_values(width: int, residual: bool, dtype: str) -> None:
    x, (weight, bias) = normal((3, 7, width), dtype=dtype), parameters(width, dtype)
    other = normal((3, 7, width), seed=4, dtype=dtype) if residual else None
    # A width of 1 has no variance at all: eps must carry it.
    got = sp.layer_norm(x, weight, bias, eps=1e-5, residual=other)
    assert got.dtype == DTYPES[dtype]
    exact = reference.layer_norm(
        f64(x), f64(weight), f64(bias), eps=1e-5, residual=None if other is None else f64(other)
    )
    total = to_torch(x) if other is None else to_torch(x) + to_torch(other)
    plain = torch.nn.functional.layer_norm(
        total, (width,), to_torch(weight), to_torch(bias), eps=1e-5
    )
    assert_accurate(got, plain, exact, dtype)


def test_a_mean_far_above_the_spread() -> None:
    """Variance as the mean of squares minus the square of the mean would be noise here."""
    x = (normal((4, 256)) + 3000).astype(np.float32)
    ones, zeros = np.ones(256, np.float32), np.zeros(256, np.float32)
    assert_allclose(sp.layer_norm(x, ones, zeros), reference.layer_norm(x, ones, zeros), atol=2e-3)


def test_a_constant_row_gives_the_bias() -> None:
    weight, bias = parameters(32, "float32")
    got = sp.layer_norm(np.full((2, 32), 5, np.float32), weight, bias)
    assert_allclose(got, np.broadcast_to(bias, (2, 32)), atol=1e-6)


def test_eps_is_added_to_the_variance() -> None:
    x = np.array([[1e-3, -1e-3]], np.float32)
    ones, zeros = np.ones(2, np.float32), np.zeros(2, np.float32)
    got = sp.layer_norm(x, ones, zeros, eps=1e-6)
    assert_allclose(got, [[0.5**0.5, -(0.5**0.5)]], rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_stay_in_their_row(bad: float) -> None:
    x, (weight, bias) = normal((5, 40)), parameters(40, "float32")
    clean = sp.layer_norm(x, weight, bias)
    x[2, 3] = bad
    got = sp.layer_norm(x, weight, bias)
    assert np.isnan(got[2, 3])
    assert_array_equal(np.delete(got, 2, axis=0), np.delete(clean, 2, axis=0))


@pytest.mark.parametrize("shape", [(40,), (0, 40), (2, 0, 40), (1, 1, 1, 40)], ids=str)
def test_any_leading_axes(shape: tuple[int, ...]) -> None:
    x, (weight, bias) = normal(shape), parameters(40, "float32")
    got = sp.layer_norm(x, weight, bias)
    assert got.shape == shape
    assert_allclose(got, reference.layer_norm(x, weight, bias), atol=3e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "layout", ["every other", "column-major", "reversed", "part of a larger array"]
)
def test_strided_and_torch(layout: str, dtype: str) -> None:
    x, residual = normal((3, 5, 33), dtype=dtype), normal((3, 5, 33), seed=4, dtype=dtype)
    weight, bias = parameters(33, dtype)
    expected = f64(sp.layer_norm(x, weight, bias, residual=residual))
    views = [strided_copies(a)[layout] for a in (x, weight, bias, residual)]
    assert_array_equal(f64(sp.layer_norm(*views[:3], residual=views[3])), expected)
    tensors = [to_torch(a) for a in (x, weight, bias, residual)]
    got = sp.layer_norm(*tensors[:3], residual=tensors[3])
    assert isinstance(got, torch.Tensor)
    assert got.dtype == tensors[0].dtype
    assert_array_equal(f64(got), expected)
