"""sp.dropout: the documented generator, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import spatile as sp
from spatile import reference

from .arrays import DTYPES, f64, normal, strided_copies, to_torch

pytestmark = pytest.mark.usefixtures("cpu_tier")


@pytest.mark.parametrize("n", [1, 15, 16, 63, 64, 65, 1000, 9000])
@pytest.mark.parametrize(("p", "seed"), [(0.1, 0), (0.5, 123), (0.9, (7 << 32) | 5)])
def test_the_mask_is_the_documented_one(n: int, p: float, seed: int) -> None:
    got = sp.dropout(np.ones(n, np.float32), p=p, seed=seed)
    assert_allclose(got, reference.dropout(np.ones(n), p=p, seed=seed), rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (7, 33), (2, 5, 4097)], ids=str)
def test_any_shape_and_dtype(shape: tuple[int, ...], dtype: str) -> None:
    x = np.array(normal(shape), DTYPES[dtype])
    got = sp.dropout(x, p=0.25, seed=9)
    assert (got.shape, got.dtype) == (x.shape, x.dtype)
    assert_allclose(f64(got), reference.dropout(f64(x), p=0.25, seed=9), rtol=1e-2, atol=1e-3)
    assert_array_equal(f64(got) == 0, reference.dropout(f64(x) != 0, p=0.25, seed=9) == 0)


@pytest.mark.parametrize(
    "layout", ["every other", "column-major", "reversed", "part of a larger array"]
)
def test_elements_are_numbered_in_row_major_order_whatever_the_strides(layout: str) -> None:
    x = normal((7, 133))
    expected = sp.dropout(x, p=0.3, seed=1)
    assert_array_equal(sp.dropout(strided_copies(x)[layout], p=0.3, seed=1), expected)
    assert_array_equal(sp.dropout(to_torch(x), p=0.3, seed=1).numpy(), expected)


def test_the_share_and_the_mean_are_right() -> None:
    got = sp.dropout(np.ones(1_000_000, np.float32), p=0.1, seed=2**64 - 1)
    assert abs(float((got == 0).mean()) - 0.1) < 1e-3
    assert abs(float(got.mean()) - 1.0) < 1e-3
    # Neighbours are independent.
    kept = (got != 0).astype(np.float64)
    for lag in (1, 16, 64):
        assert abs(np.corrcoef(kept[:-lag], kept[lag:])[0, 1]) < 5e-3


def test_nothing_dropped_is_the_input() -> None:
    x = normal((5, 40))
    assert_array_equal(sp.dropout(x, p=0.0, seed=3), x)


def test_dropped_infinities_and_nans_are_zero() -> None:
    x = np.full(256, np.inf, np.float32)
    x[::2] = np.nan
    got = sp.dropout(x, p=0.5, seed=0)
    dropped = reference.dropout(np.ones(256), p=0.5, seed=0) == 0
    assert (got[dropped] == 0).all()
    assert not np.isfinite(got[~dropped]).any()
