"""sp.softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import spatile as sp
from spatile import reference

from .arrays import DTYPES, assert_accurate, f64, normal, strided_copies, to_torch

pytestmark = pytest.mark.usefixtures("cpu_tier")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 33, 100, 500, 3000])
def test_values(n: int, dtype: str) -> None:
    x = normal((5, n), dtype=dtype, scale=4.0)
    got = sp.softmax(x)
    assert got.dtype == DTYPES[dtype]
    assert_accurate(got, to_torch(x).softmax(-1), reference.softmax(f64(x)), dtype)


@pytest.mark.parametrize("n", [1, 5, 16, 40])
def test_rows_of_minus_infinity_are_zero(n: int) -> None:
    x = normal((4, n))
    x[1] = -np.inf
    x[2, : n // 2] = -np.inf
    got = sp.softmax(x)
    assert not got[1].any()
    assert not got[2, : n // 2].any()
    assert_allclose(got, reference.softmax(x), atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_stay_in_their_row(bad: float) -> None:
    x = normal((3, 40))
    x[1, 7] = bad
    got = sp.softmax(x)
    assert np.isnan(got[1, 7])
    assert_allclose(got[[0, 2]], reference.softmax(x[[0, 2]]), atol=1e-6)


@given(
    n=st.integers(1, 70),
    shift=st.floats(-1e4, 1e4),
    spread=st.floats(0, 200),
    seed=st.integers(0, 1000),
)
def test_rows_sum_to_one_wherever_they_lie(n: int, shift: float, spread: float, seed: int) -> None:
    x = (normal((3, n), seed=seed, scale=spread) + np.float32(shift)).astype(np.float32)
    got = sp.softmax(x)
    assert (got >= 0).all()
    assert_allclose(got.sum(-1), 1, rtol=1e-5)
    assert_allclose(got, reference.softmax(x), atol=2e-6)


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (4,), (2, 3, 5)], ids=str)
def test_any_shape(shape: tuple[int, ...]) -> None:
    x = normal(shape)
    got = sp.softmax(x)
    assert got.shape == shape
    assert_allclose(got, reference.softmax(x), atol=1e-6)


@pytest.mark.parametrize(
    "layout", ["every other", "column-major", "reversed", "part of a larger array"]
)
def test_strided_and_torch(layout: str) -> None:
    x = normal((3, 7, 33))
    expected = sp.softmax(x)
    assert_array_equal(sp.softmax(strided_copies(x)[layout]), expected)
    got = sp.softmax(to_torch(x))
    assert isinstance(got, torch.Tensor)
    assert_array_equal(got.numpy(), expected)
