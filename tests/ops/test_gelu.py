"""sp.gelu."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import spatile as sp
from spatile import reference

from .arrays import DTYPES, assert_accurate, f64, normal, strided_copies, to_torch

pytestmark = pytest.mark.usefixtures("cpu_tier")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("n", [1, 15, 16, 17, 33, 1000])
def test_values(n: int, approximate: str, dtype: str) -> None:
    x = normal((n,), dtype=dtype, scale=2.0)
    got = sp.gelu(x, approximate=approximate)
    assert got.dtype == DTYPES[dtype]
    plain = torch.nn.functional.gelu(to_torch(x), approximate=approximate)
    assert_accurate(got, plain, reference.gelu(f64(x), approximate=approximate), dtype)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_every_scale(approximate: str) -> None:
    """Relative where the value is large or small, absolute in the negative tail."""
    x = np.concatenate([s * np.logspace(-30, 30, 4001) for s in (1, -1)]).astype(np.float32)
    exact = reference.gelu(x, approximate=approximate)
    assert_allclose(sp.gelu(x, approximate=approximate), exact, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_the_default_is_exact_and_the_other_differs(approximate: str) -> None:
    x = np.linspace(-4, 4, 801, dtype=np.float32)
    got = sp.gelu(x, approximate=approximate)
    assert_allclose(got, reference.gelu(x, approximate=approximate), atol=1e-6)
    assert (np.abs(sp.gelu(x) - got).max() < 1e-7) == (approximate == "none")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_extremes(approximate: str, dtype: str) -> None:
    """The limit at minus infinity is 0, the formula's value there NaN: either will do."""
    x = np.array([np.nan, np.inf, 6e4, -6e4, 0.0, -0.0, -np.inf], DTYPES[dtype])
    got = f64(sp.gelu(x, approximate=approximate))
    assert_array_equal(got[:-1], [np.nan, np.inf, f64(x)[2], 0.0, 0.0, 0.0])
    assert np.isnan(got[-1]) or got[-1] == 0


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3, 5)], ids=str)
def test_any_shape(shape: tuple[int, ...]) -> None:
    x = normal(shape) if shape else np.array(0.5, np.float32)
    got = sp.gelu(x)
    assert got.shape == shape
    assert_allclose(got, reference.gelu(x), atol=1e-6)


@pytest.mark.parametrize(
    "layout", ["every other", "column-major", "reversed", "part of a larger array"]
)
def test_strided_and_torch(layout: str) -> None:
    x = normal((7, 33))
    expected = sp.gelu(x)
    assert_allclose(sp.gelu(strided_copies(x)[layout]), expected, atol=1e-7)
    got = sp.gelu(to_torch(x))
    assert isinstance(got, torch.Tensor)
    assert_array_equal(got.numpy(), expected)
