"""Dropout inside sp.attention: the documented generator, bit for bit, forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import spatile as sp
from spatile import reference

from .arrays import DTYPES, f64, normal

pytestmark = pytest.mark.usefixtures("cpu_tier")


def identity_values(b: int, sk: int, h: int) -> np.ndarray:
    """Values such that the output of attention is its matrix of probabilities."""
    return np.broadcast_to(np.eye(sk, dtype=np.float32)[:, None, :], (b, sk, h, sk)).copy()


@pytest.mark.parametrize("s", [1, 3, 4, 5, 16, 17, 33, 130])
@pytest.mark.parametrize(
    ("dropout", "seed"), [(0.1, 0), (0.5, 123), (0.9, (7 << 32) | 5), (0.25, 2**64 - 1)]
)
def test_the_mask_is_the_documented_one(s: int, dropout: float, seed: int) -> None:
    q, k = normal((2, s, 3, 8), seed=1, scale=0.3), normal((2, s, 3, 8), seed=2, scale=0.3)
    got = sp.attention(q, k, identity_values(2, s, 3), dropout=dropout, seed=seed)
    for n in range(2):
        kept = reference.dropout_keep(3, s, s, dropout=dropout, seed=seed, sequence=n)
        assert_array_equal(got[n].transpose(1, 0, 2) != 0, kept)


def test_the_mask_of_packed_sequences_starts_anew() -> None:
    offsets = [0, 9, 9, 30]
    q, k = normal((30, 2, 8), seed=1, scale=0.3), normal((30, 2, 8), seed=2, scale=0.3)
    v = np.zeros((30, 2, 21), np.float32)
    for start, stop in ((0, 9), (9, 30)):
        v[start:stop, :, : stop - start] = np.eye(stop - start, dtype=np.float32)[:, None]
    got = sp.attention(q, k, v, offsets=offsets, dropout=0.4, seed=5)
    for n, (start, stop) in {0: (0, 9), 2: (9, 30)}.items():
        size = stop - start
        kept = reference.dropout_keep(2, size, size, dropout=0.4, seed=5, sequence=n)
        assert_array_equal(got[start:stop, :, :size].transpose(1, 0, 2) != 0, kept)


@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"window": (4, 4)}, {"lengths": [40, 9]}], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values(options: dict[str, Any], dtype: str) -> None:
    q = normal((2, 40, 4, 16), seed=1, dtype=dtype)
    k, v = (normal((2, 40, 2, 16), seed=s, dtype=dtype) for s in (2, 3))
    options = {**options, "dropout": 0.2, "seed": 99}
    got = sp.attention(q, k, v, **options, return_lse=True, return_importance=True)
    exact = reference.attention(
        f64(q), f64(k), f64(v), **options, return_lse=True, return_importance=True
    )
    tolerance = {"float32": 5e-6, "float16": 5e-3, "bfloat16": 4e-2}[dtype]
    assert_allclose(f64(got.out), exact.out, atol=tolerance)
    # Before dropout: neither the denominators nor the tokens' importance know of it.
    assert_allclose(got.lse, exact.lse, atol=1e-5)
    assert_allclose(got.token_importance, exact.token_importance, rtol=1e-5, atol=1e-6)
    assert_allclose(got.head_importance, exact.head_importance, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.05, 0.5, 0.8])
def test_the_kept_fraction_and_the_mean(dropout: float) -> None:
    s = 128
    q = k = np.zeros((4, s, 4, 8), np.float32)
    got = sp.attention(q, k, identity_values(4, s, 4), dropout=dropout, seed=42)
    kept = got != 0
    n = kept.size
    deviation = (kept.mean() - (1 - dropout)) / np.sqrt(dropout * (1 - dropout) / n)
    assert abs(deviation) < 4
    assert_allclose(got[kept], 1 / (s * (1 - dropout)), rtol=1e-5)
    # Neighbouring elements, heads and sequences are independent.
    for a, b in (
        (kept[..., 1:], kept[..., :-1]),
        (kept[:, 1:], kept[:, :-1]),
        (kept[1:], kept[:-1]),
        (kept[:, :, 1:], kept[:, :, :-1]),
    ):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


def test_seeds_decide_and_nothing_else() -> None:
    q, k, v = (normal((2, 20, 2, 16), seed=s) for s in (1, 2, 3))
    first = sp.attention(q, k, v, dropout=0.3, seed=1)
    assert_array_equal(sp.attention(q, k, v, dropout=0.3, seed=1), first)
    assert (sp.attention(q, k, v, dropout=0.3, seed=2) != first).any()
    assert (sp.attention(q, k, v, dropout=0.3, seed=1 | (1 << 32)) != first).any()
    plain = sp.attention(q, k, v)
    assert_array_equal(sp.attention(q, k, v, dropout=0.0, seed=1), plain)


def test_a_row_with_everything_dropped_is_zero() -> None:
    q, k, v = (normal((1, 4, 1, 8), seed=s) for s in (1, 2, 3))
    for seed in range(40):
        kept = reference.dropout_keep(1, 4, 4, dropout=0.9, seed=seed)[0]
        got = sp.attention(q, k, v, dropout=0.9, seed=seed)
        assert_array_equal(~got[0, :, 0].any(axis=-1), ~kept.any(axis=-1))


@pytest.mark.parametrize("s", [1, 7, 33, 130])
def test_the_backward_pass_replays_the_mask(s: int) -> None:
    """For a gradient of ones in one row, dv is that row's kept probabilities."""
    q, k = normal((2, s, 3, 8), seed=1, scale=0.3), normal((2, s, 3, 8), seed=2, scale=0.3)
    v = normal((2, s, 3, 8), seed=3)
    options = {"dropout": 0.5, "seed": 31}
    got = sp.attention(q, k, v, **options, return_lse=True)
    row = s // 2
    grad = np.zeros_like(v)
    grad[:, row] = 1
    dv = sp.attention_backward(grad, q, k, v, got.out, got.lse, **options).v
    for n in range(2):
        kept = reference.dropout_keep(3, s, s, dropout=0.5, seed=31, sequence=n)
        assert_array_equal(dv[n, :, :, 0].T != 0, kept[:, row])
