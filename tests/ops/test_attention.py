"""sp.attention against its definition: values over shapes, options and storage types."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import spatile as sp
from spatile import reference

from .arrays import (
    DTYPES,
    assert_accurate,
    assert_guards_intact,
    f64,
    guarded,
    normal,
    strided_copies,
    to_torch,
)
from .cases import OPTIONS, SHAPES, operands, option_case, option_truth, shape_truth

pytestmark = pytest.mark.usefixtures("cpu_tier")


def assert_result(got: Any, exact: Any, plain: Any, dtype: str) -> None:
    assert_accurate(got.out, plain.out, exact.out, dtype)
    empty = exact.lse == -np.inf
    assert_array_equal(f64(got.lse) == -np.inf, empty)
    assert_accurate(f64(got.lse)[~empty], f64(plain.lse)[~empty], exact.lse[~empty], dtype)
    assert_accurate(got.token_importance, plain.token_importance, exact.token_importance, dtype)
    assert_accurate(got.head_importance, plain.head_importance, exact.head_importance, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_over_shapes(shape: tuple[int, ...], dtype: str) -> None:
    q, k, v, _ = operands(shape, dtype)
    got = sp.attention(q, k, v, return_lse=True, return_importance=True)
    assert got.out.dtype == DTYPES[dtype]
    assert got.lse.dtype == got.token_importance.dtype == got.head_importance.dtype == np.float32
    assert_result(got, *shape_truth(shape, dtype), dtype)
    alone = sp.attention(q, k, v)
    assert isinstance(alone, np.ndarray)
    assert alone.dtype == DTYPES[dtype]
    exact, plain = shape_truth(shape, dtype)
    assert_accurate(alone, plain.out, exact.out, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_values_over_options(name: str, dtype: str) -> None:
    (q, k, v, _), options = option_case(name, dtype)
    got = sp.attention(q, k, v, **options, return_lse=True, return_importance=True)
    assert_result(got, *option_truth(name, dtype), dtype)
    exact, plain = option_truth(name, dtype)
    assert_accurate(sp.attention(q, k, v, **options), plain.out, exact.out, dtype)


def test_only_what_is_asked_for_is_returned() -> None:
    q, k, v, _ = operands((1, 5, 5, 2, 2, 8, 8), "float32")
    lse = sp.attention(q, k, v, return_lse=True)
    assert lse.lse is not None
    assert lse.token_importance is None
    assert lse.head_importance is None
    importance = sp.attention(q, k, v, return_importance=True)
    assert importance.lse is None
    assert importance.token_importance.shape == (1, 5)
    assert importance.head_importance.shape == (1, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "layout", ["every other", "column-major", "reversed", "part of a larger array"]
)
def test_strided_inputs(layout: str, dtype: str) -> None:
    q, k, v, _ = operands((2, 18, 21, 4, 2, 16, 16), dtype)
    mask = np.random.default_rng(6).random((2, 4, 18, 21)) < 0.7
    bias = normal((2, 1, 18, 21), seed=7, dtype=dtype)
    expected = sp.attention(q, k, v, mask=mask, bias=bias)
    views = [strided_copies(x)[layout] for x in (q, k, v, mask, bias)]
    got = sp.attention(views[0], views[1], views[2], mask=views[3], bias=views[4])
    assert_array_equal(f64(got), f64(expected))


def test_slices_of_one_fused_projection() -> None:
    """Q, K and V out of a (b, s, 3, h, d) product, as models give them."""
    fused = normal((2, 19, 3, 4, 16), seed=8)
    got = sp.attention(fused[:, :, 0], fused[:, :, 1], fused[:, :, 2])
    expected = reference.attention(fused[:, :, 0], fused[:, :, 1], fused[:, :, 2])
    assert_allclose(got, expected, atol=2e-6)


def test_heads_first_arrays_transposed() -> None:
    """(b, h, s, d) memory seen as (b, s, h, d)."""
    q, k, v = (normal((2, 3, 20, 16), seed=s).transpose(0, 2, 1, 3) for s in (1, 2, 3))
    assert_allclose(sp.attention(q, k, v), reference.attention(q, k, v), atol=2e-6)


def test_broadcast_values_stride_zero() -> None:
    q, k, v, _ = operands((2, 9, 9, 2, 2, 8, 8), "float32")
    k_shared = np.broadcast_to(k[:1], k.shape)
    mask = np.broadcast_to(np.random.default_rng(9).random((1, 1, 1, 9)) < 0.6, (2, 2, 9, 9))
    got = sp.attention(q, k_shared, v, mask=mask)
    assert_allclose(got, reference.attention(q, k_shared, v, mask=mask), atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1, 8, 8), (2, 17, 33, 3, 3, 20, 20)], ids=str)
def test_out_is_filled_and_nothing_around_it(shape: tuple[int, ...], dtype: str) -> None:
    q, k, v, _ = operands(shape, dtype)
    expected = sp.attention(q, k, v)
    out, memory = guarded(expected.shape, DTYPES[dtype])
    assert sp.attention(q, k, v, out=out) is out
    assert_array_equal(f64(out), f64(expected))
    assert_guards_intact(memory)


def test_out_is_the_result_field() -> None:
    q, k, v, _ = operands((1, 5, 5, 2, 2, 8, 8), "float32")
    out = np.full((1, 5, 2, 8), np.nan, np.float32)
    got = sp.attention(q, k, v, out=out, return_lse=True)
    assert got.out is out
    assert np.isfinite(out).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_in_torch_out(dtype: str) -> None:
    q, k, v, _ = operands((2, 18, 18, 4, 2, 16, 16), dtype)
    lengths = np.array([18, 7])
    mask = np.random.default_rng(10).random((2, 1, 18, 18)) < 0.8
    expected = sp.attention(q, k, v, mask=mask, lengths=lengths, return_lse=True)
    tensors = [to_torch(x) for x in (q, k, v)]
    got = sp.attention(
        *tensors, mask=torch.from_numpy(mask), lengths=torch.from_numpy(lengths), return_lse=True
    )
    assert isinstance(got.out, torch.Tensor)
    assert got.out.dtype == tensors[0].dtype
    assert isinstance(got.lse, torch.Tensor)
    assert got.lse.dtype == torch.float32
    assert_array_equal(f64(got.out), f64(expected.out))
    assert_array_equal(f64(got.lse), f64(expected.lse))


def test_torch_views_and_out() -> None:
    q, k, v, _ = operands((2, 9, 9, 2, 2, 8, 8), "float32")
    heads_first = [to_torch(x).transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    out = torch.full(q.shape, torch.nan)
    got = sp.attention(*heads_first, out=out)
    assert got.data_ptr() == out.data_ptr()
    assert_allclose(out.numpy(), reference.attention(q, k, v), atol=2e-6)


@pytest.mark.parametrize("kind", ["mask", "lengths"])
def test_a_padded_batch_equals_its_unpadded_rows(kind: str) -> None:
    """Whatever the padding holds."""
    q, k, v, _ = operands((4, 40, 40, 2, 2, 16, 16), "float32")
    lengths = [40, 1, 17, 32]
    for n, length in enumerate(lengths):
        for x in (q, k, v):
            x[n, length:] = 1e30 if kind == "lengths" else 5.0
    if kind == "lengths":
        options: dict[str, Any] = {"lengths": np.array(lengths)}
    else:
        options = {"mask": np.arange(40) < np.array(lengths)[:, None, None, None]}
    got = sp.attention(q, k, v, **options, return_importance=kind == "lengths")
    batch = got.out if kind == "lengths" else got
    for n, length in enumerate(lengths):
        rows = slice(n, n + 1), slice(0, length)
        alone = sp.attention(q[rows], k[rows], v[rows], return_importance=True)
        assert_allclose(batch[rows], alone.out, atol=1e-6)
        if kind == "lengths":
            assert not batch[n, length:].any()
            assert_allclose(got.token_importance[n, :length], alone.token_importance[0], rtol=1e-5)
            assert not got.token_importance[n, length:].any()
            assert_allclose(got.head_importance[n], alone.head_importance[0], rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_importance_sums_to_heads_times_valid_queries(dtype: str) -> None:
    q, k, v, _ = operands((3, 50, 50, 4, 2, 16, 16), dtype)
    lengths = np.array([50, 13, 0])
    got = sp.attention(q, k, v, lengths=lengths, return_importance=True)
    assert_allclose(got.token_importance.sum(axis=1), 4 * lengths, rtol=1e-4)
    assert (got.token_importance >= 0).all()


def test_importance_grows_nowhere_else() -> None:
    """A key that nobody may see has none."""
    q, k, v, _ = operands((1, 12, 12, 2, 2, 8, 8), "float32")
    mask = np.ones((1, 1, 1, 12), bool)
    mask[..., [0, 5, 11]] = False
    got = sp.attention(q, k, v, mask=mask, return_importance=True)
    assert_array_equal(got.token_importance[0] == 0, ~mask[0, 0, 0])


def test_threads_change_nothing() -> None:
    q, k, v, _ = operands((3, 70, 70, 4, 2, 32, 32), "float32")
    before = sp.num_threads()
    try:
        sp.set_num_threads(1)
        one = sp.attention(q, k, v, return_lse=True, return_importance=True)
        sp.set_num_threads(2)
        two = sp.attention(q, k, v, return_lse=True, return_importance=True)
    finally:
        sp.set_num_threads(before)
    assert_array_equal(one.out, two.out)
    assert_array_equal(one.lse, two.lse)
    assert_allclose(one.token_importance, two.token_importance, rtol=1e-6)
    assert_allclose(one.head_importance, two.head_importance, rtol=1e-6)
