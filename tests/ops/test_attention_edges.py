"""sp.attention at the edges: nothing to attend, NaN, infinity, no rows at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import spatile as sp
from spatile import reference

from .arrays import DTYPES, f64, normal
from .cases import operands

pytestmark = pytest.mark.usefixtures("cpu_tier")

EMPTY = {
    "no sequences": (0, 5, 5, 2, 2, 8, 8),
    "no tokens": (2, 0, 0, 2, 2, 8, 8),
    "no queries": (2, 0, 4, 2, 2, 8, 8),
    "no keys": (2, 4, 0, 2, 2, 8, 8),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EMPTY)
def test_empty_arrays(name: str, dtype: str) -> None:
    b, sq, sk, h, _, _, dv = EMPTY[name]
    q, k, v, grad = operands(EMPTY[name], dtype)
    got = sp.attention(q, k, v, return_lse=True, return_importance=True)
    assert got.out.shape == (b, sq, h, dv)
    assert not f64(got.out).any()
    assert got.lse.shape == (b, h, sq)
    assert (got.lse == -np.inf).all()
    assert got.token_importance.shape == (b, sk)
    assert not got.token_importance.any()
    assert got.head_importance.shape == (b, h)
    assert not got.head_importance.any()
    back = sp.attention_backward(grad, q, k, v, got.out, got.lse)
    for gradient, x in zip((back.q, back.k, back.v), (q, k, v), strict=True):
        assert gradient.shape == x.shape
        assert not f64(gradient).any()


@pytest.mark.parametrize("s", [1, 16, 37, 130])
def test_fully_masked_rows_are_zero(s: int) -> None:
    q, k, v, grad = operands((2, s, s, 2, 2, 16, 16), "float32")
    mask = np.ones((2, 1, s, s), bool)
    mask[0, :, s // 2] = False
    mask[1] = False
    got = sp.attention(q, k, v, mask=mask, return_lse=True, return_importance=True)
    dead = np.zeros((2, s), bool)
    dead[0, s // 2] = True
    dead[1] = True
    assert not got.out[dead].any()
    assert (got.lse.transpose(0, 2, 1)[dead] == -np.inf).all()
    assert np.isfinite(got.lse.transpose(0, 2, 1)[~dead]).all()
    assert_allclose(got.token_importance.sum(axis=1), [2 * (s - 1), 0], rtol=1e-5)
    assert_allclose(got.out, reference.attention(q, k, v, mask=mask), atol=2e-6)
    back = sp.attention_backward(grad, q, k, v, got.out, got.lse, mask=mask)
    assert not back.q[dead].any()
    assert not back.k[1].any()
    assert not back.v[1].any()
    assert all(np.isfinite(x).all() for x in (back.q, back.k, back.v))


def test_causal_rows_before_the_first_key_are_zero() -> None:
    """More queries than keys, aligned to the bottom right: the first rows see nothing."""
    q, k, v, _ = operands((1, 9, 4, 2, 2, 8, 8), "float32")
    got = sp.attention(q, k, v, causal=True, return_lse=True)
    assert not got.out[0, :5].any()
    assert (got.lse[0, :, :5] == -np.inf).all()
    assert_allclose(got.out[0, 5], v[0, 0], atol=1e-6)


def test_bias_of_minus_infinity_is_a_mask() -> None:
    q, k, v, _ = operands((2, 21, 21, 2, 2, 16, 16), "float32")
    mask = np.random.default_rng(3).random((2, 2, 21, 21)) < 0.5
    mask[0, 1, 4] = False
    bias = np.where(mask, 0, -np.inf).astype(np.float32)
    by_bias = sp.attention(q, k, v, bias=bias, return_lse=True)
    by_mask = sp.attention(q, k, v, mask=mask, return_lse=True)
    assert_allclose(by_bias.out, by_mask.out, atol=1e-6)
    assert_allclose(by_bias.lse, by_mask.lse, atol=1e-5)
    assert not by_bias.out[0, 4, 1].any()


def test_bias_of_the_lowest_float_is_no_nan() -> None:
    """What other libraries put in a mask; a row full of it averages evenly."""
    q, k, v, _ = operands((1, 6, 6, 1, 1, 8, 8), "float32")
    bias = np.zeros((1, 1, 6, 6), np.float32)
    bias[..., 3:] = np.finfo(np.float32).min
    bias[0, 0, 2] = np.finfo(np.float32).min
    got = sp.attention(q, k, v, bias=bias)
    assert np.isfinite(got).all()
    assert_allclose(got[:, :2], reference.attention(q[:, :2], k[:, :3], v[:, :3]), atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("s", [5, 40])
def test_nan_reaches_its_own_rows_only(s: int, dtype: str) -> None:
    q, k, v, _ = operands((2, s, s, 2, 2, 16, 16), dtype)
    clean = f64(sp.attention(q, k, v))
    q[0, 3, 1, 5] = np.nan
    got = f64(sp.attention(q, k, v))
    assert np.isnan(got[0, 3, 1]).all()
    got[0, 3, 1] = clean[0, 3, 1]
    assert_allclose(got, clean, atol=1e-2 if dtype != "float32" else 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("s", [5, 40])
def test_nan_in_a_key_reaches_every_row_that_sees_it(s: int, dtype: str) -> None:
    q, k, v, _ = operands((2, s, s, 2, 2, 16, 16), dtype)
    k[1, 2, 0, 0] = np.nan
    got = f64(sp.attention(q, k, v))
    assert np.isnan(got[1, :, 0]).all()
    assert np.isfinite(got[0]).all()
    assert np.isfinite(got[1, :, 1]).all()


def test_nan_in_a_value_reaches_its_own_feature() -> None:
    q, k, v, _ = operands((1, 20, 20, 2, 2, 16, 16), "float32")
    v[0, 7, 1, 3] = np.nan
    got = sp.attention(q, k, v)
    expected = np.zeros(got.shape, bool)
    expected[0, :, 1, 3] = True
    assert_array_equal(np.isnan(got), expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_infinite_query_and_value(sign: int) -> None:
    """As in NumPy: an infinite score has no softmax; an infinite value passes."""
    q, k, v, _ = operands((1, 20, 20, 1, 1, 16, 16), "float32")
    v[0, 7, 0, 3] = sign * np.inf
    got = sp.attention(q, k, v)
    assert (got[0, :, 0, 3] == sign * np.inf).all()
    assert np.isfinite(np.delete(got[0, :, 0], 3, axis=1)).all()
    q, k, v, _ = operands((1, 20, 20, 1, 1, 16, 16), "float32")
    q[0, 4, 0, 0] = sign * np.inf
    got = sp.attention(q, k, v)
    assert np.isnan(got[0, 4]).all()
    assert np.isfinite(np.delete(got[0], 4, axis=0)).all()


def test_an_infinite_bias_wins_or_is_nan_never_a_crash() -> None:
    q, k, v, _ = operands((1, 6, 6, 1, 1, 8, 8), "float32")
    bias = np.zeros((1, 1, 6, 6), np.float32)
    bias[0, 0, 2, 3] = np.inf
    got = sp.attention(q, k, v, bias=bias)
    assert np.isnan(got[0, 2]).all()
    assert np.isfinite(np.delete(got[0], 2, axis=0)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores_do_not_overflow(dtype: str) -> None:
    """q·k past the range of float16, and far past that of exp: the row becomes one key's value."""
    rng = np.random.default_rng(12)
    k = np.sign(rng.standard_normal((1, 33, 1, 64))) * 60
    q, k, v = (x.astype(DTYPES[dtype]) for x in (k, k, rng.standard_normal((1, 33, 1, 64))))
    assert np.abs(f64(q)[0, :, 0] @ f64(k)[0, :, 0].T).max() > 65504
    got = sp.attention(q, k, v, return_lse=True)
    assert np.isfinite(f64(got.out)).all()
    assert np.isfinite(got.lse).all()
    assert_array_equal(f64(got.out), f64(v))
    assert_allclose(got.lse, np.full((1, 1, 33), 60 * 60 * 8.0), rtol=1e-5)


def test_very_negative_scores_keep_their_softmax() -> None:
    """Every score near -1e4: the maximum is subtracted before exp, or all rows would be 0/0."""
    q, k, v, _ = operands((1, 17, 17, 1, 1, 8, 8), "float32")
    bias = np.full((1, 1, 17, 17), -1e4, np.float32)
    got = sp.attention(q, k, v, bias=bias, return_lse=True)
    assert_allclose(got.out, reference.attention(q, k, v), atol=2e-3)
    assert (got.lse < -9e3).all()


def test_importance_does_not_saturate_over_many_queries() -> None:
    """3000 queries that all see one key: a float16 sum would stop at 2048."""
    q = normal((1, 3000, 1, 8), dtype="float16")
    k, v = (
        normal((1, 1, 1, 8), seed=1, dtype="float16"),
        normal((1, 1, 1, 8), seed=2, dtype="float16"),
    )
    got = sp.attention(q, k, v, return_importance=True)
    assert_allclose(got.token_importance, [[3000.0]], rtol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"window": (0, 0)}, {"lengths": np.array([1])}]
)
def test_a_sequence_of_one_is_its_value(options: dict[str, Any]) -> None:
    q, k, v, _ = operands((1, 1, 1, 3, 3, 8, 8), "float32")
    got = sp.attention(q, k, v, **options, return_lse=True, return_importance=True)
    assert_allclose(got.out, v, atol=1e-7)
    assert_allclose(got.lse[0, :, 0], (q * k).sum(-1)[0, 0] / np.sqrt(8), rtol=1e-5, atol=1e-6)
    assert_allclose(got.token_importance, [[3.0]], rtol=1e-6)


def test_zero_scale_averages() -> None:
    q, k, v, _ = operands((1, 9, 9, 1, 1, 8, 8), "float32")
    got = sp.attention(q, k, v, scale=0.0)
    assert_allclose(got[0, 0, 0], v[0, :, 0].mean(axis=0), atol=1e-6)
