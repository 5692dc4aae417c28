"""Each attention kernel of a GPU, where another is taken too, gives the definition's values."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import spatile as sp
from spatile import reference

from .arrays import DTYPES, f64, normal
from .cases import operands, option_case, option_truth, shape_truth
from .test_attention import assert_result

pytestmark = pytest.mark.usefixtures("cpu_tier", "form")

SHAPES = [
    (3, 100, 100, 2, 2, 32, 32),
    (2, 130, 150, 4, 2, 64, 64),
    (1, 70, 90, 2, 1, 96, 80),
    (1, 40, 70, 2, 2, 128, 120),
    (1, 20, 45, 2, 1, 200, 224),
    (1, 9, 20, 1, 1, 300, 280),
]
OPTIONS = ["bias, mask and window", "lengths and causal", "causal, more queries than keys"]


@pytest.fixture(params=["whole_rows", "streaming", "simple"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if not os.environ.get("SPATILE_DEVICE", "").startswith("cuda"):
        pytest.skip("kernels of the GPU")
    monkeypatch.setenv("SPATILE_CUDA_ATTENTION", request.param)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_over_shapes(shape: tuple[int, ...], dtype: str) -> None:
    q, k, v, _ = operands(shape, dtype)
    got = sp.attention(q, k, v, return_lse=True, return_importance=True)
    assert_result(got, *shape_truth(shape, dtype), dtype)
    again = sp.attention(q, k, v, return_lse=True, return_importance=True)
    for a, b in zip(got, again, strict=True):
        assert_array_equal(f64(a), f64(b))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_values_over_options(name: str, dtype: str) -> None:
    (q, k, v, _), options = option_case(name, dtype)
    got = sp.attention(q, k, v, **options, return_lse=True, return_importance=True)
    assert_result(got, *option_truth(name, dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"window": (30, 9)}, {"causal": True}], ids=str)
def test_packed_with_dropout(options: dict[str, Any], dtype: str) -> None:
    offsets = np.array([0, 70, 70, 75, 205])
    q = normal((205, 4, 16), seed=1, dtype=dtype)
    k, v = (normal((205, 2, 16), seed=s, dtype=dtype) for s in (2, 3))
    options = {**options, "offsets": offsets, "dropout": 0.3, "seed": 7}
    got = sp.attention(q, k, v, **options, return_lse=True, return_importance=True)
    exact = reference.attention(
        f64(q), f64(k), f64(v), **options, return_lse=True, return_importance=True
    )
    close = {"float32": 5e-6, "float16": 5e-3, "bfloat16": 4e-2}[dtype]
    assert_allclose(f64(got.out), exact.out, atol=close)
    assert_allclose(got.lse, exact.lse, atol=1e-5)
    assert_allclose(got.token_importance, exact.token_importance, rtol=1e-5, atol=1e-6)
    assert_allclose(got.head_importance, exact.head_importance, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("queries", "keys", "options"),
    [(20, 1100, {"window": (30, 9)}), (17, 640, {}), (33, 600, {"causal": True})],
    ids=str,
)
def test_many_keys(queries: int, keys: int, options: dict[str, Any], dtype: str) -> None:
    """More than whole rows hold, but for a window; and more than are summed up block by block."""
    q = normal((1, queries, 2, 16), seed=1, dtype=dtype)
    k, v = (normal((1, keys, 1, 16), seed=s, dtype=dtype) for s in (2, 3))
    got = sp.attention(q, k, v, **options, return_lse=True, return_importance=True)
    exact = reference.attention(
        f64(q), f64(k), f64(v), **options, return_lse=True, return_importance=True
    )
    close = {"float32": 5e-6, "float16": 5e-3, "bfloat16": 4e-2}[dtype]
    assert_allclose(f64(got.out), exact.out, atol=close)
    assert_allclose(got.lse, exact.lse, atol=1e-5)
    assert_allclose(got.token_importance, exact.token_importance, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_to_attend_and_no_scale(dtype: str) -> None:
    q, k, v, _ = operands((2, 40, 40, 2, 2, 16, 16), dtype)
    got = sp.attention(q, k, v, scale=0.0, lengths=[40, 21], return_importance=True)
    assert_allclose(f64(got.out[1, 3]), f64(v[1, :21]).mean(axis=0), atol=2e-2)
    assert_allclose(got.token_importance.sum(axis=1), [80, 42], rtol=1e-5)
    mask = np.ones((2, 1, 40, 1), bool)
    mask[:, :, 5:38] = False
    v[0, 4, 0, 2] = np.nan
    got = sp.attention(q, k, v, mask=mask, return_lse=True)
    assert not f64(got.out[:, 5:38]).any()
    assert (got.lse[:, :, 5:38] == -np.inf).all()
    seen = np.isnan(f64(got.out))
    assert seen[0, :5, 0, 2].all()
    assert seen.sum() == 7
