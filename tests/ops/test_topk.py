"""sp.topk: exactly k, in the original order, the first of equals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import spatile as sp
from spatile import reference

from .arrays import DTYPES, f64, normal, strided_copies, to_torch

pytestmark = pytest.mark.usefixtures("cpu_tier")


def test_the_published_example() -> None:
    """SpAtten's own: the top 4 of these eight, in their order."""
    got = sp.topk(np.array([7, 2, 6, 4, 9, 1, 3, 5], np.float32), 4)
    assert got.values.tolist() == [7, 6, 9, 5]
    assert got.indices.tolist() == [0, 2, 4, 7]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 15, 16, 17, 33, 64, 100, 320, 500])
def test_values_over_sizes(n: int, dtype: str) -> None:
    scores = normal((3, 2, n), dtype=dtype)
    for k in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        got = sp.topk(scores, k)
        exact = reference.topk(f64(scores), k)
        assert got.values.dtype == DTYPES[dtype]
        assert got.indices.dtype == np.int64
        assert_array_equal(got.indices, exact.indices)
        assert_array_equal(f64(got.values), exact.values)


@given(
    scores=st.lists(st.sampled_from([0.0, -0.0, 1.0, 1.5, -2.0, np.inf, -np.inf]), max_size=80),
    data=st.data(),
)
def test_ties_and_infinities_as_a_stable_sort(scores: list[float], data: st.DataObject) -> None:
    x = np.array(scores, np.float32)
    k = data.draw(st.integers(0, len(scores)))
    got = sp.topk(x, k)
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    assert got.indices.tolist() == sorted(order[:k])
    assert_array_equal(got.values, x[got.indices])


@pytest.mark.parametrize("kind", ["rising", "falling", "constant", "organ pipe", "two values"])
def test_orders_that_quick_select_dislikes(kind: str) -> None:
    n = 20_000
    x = {
        "rising": np.arange(n),
        "falling": -np.arange(n),
        "constant": np.ones(n),
        "organ pipe": -np.abs(np.arange(n) - n // 2),
        "two values": np.arange(n) % 2,
    }[kind].astype(np.float32)
    for k in (1, n // 2, n - 1):
        assert_array_equal(sp.topk(x, k).indices, reference.topk(x, k).indices)


@pytest.mark.parametrize("equal", [0.06, 0.08, 0.1])
def test_the_middle_of_many_is_mostly_equal(equal: float) -> None:
    """Quick-select keeps a tenth for a second round, which cannot halve it and counts instead."""
    x = normal((70_001,))
    x[np.random.default_rng(3).random(len(x)) < equal] = 0
    k = int((x > 0).sum() + (x == 0).sum() // 2)
    got, exact = sp.topk(x, k), reference.topk(x, k)
    assert_array_equal(got.indices, exact.indices)
    assert_array_equal(got.values, exact.values)


@pytest.mark.parametrize("at", [4096, 8000, 8191])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_sample_that_misleads(at: int, sign: int) -> None:
    """Quick-select brackets rank k by 256 of 8192 keys: here they all lie at one end."""
    i = np.arange(256, dtype=np.uint64)
    sampled = i * np.uint64(32) + (
        (i * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    ) % np.uint64(32)
    x = np.arange(1, 8193, dtype=np.float32)
    x[sampled] = -1 - np.arange(256)
    x *= sign
    got, exact = sp.topk(x, at), reference.topk(x, at)
    assert_array_equal(got.indices, exact.indices)
    assert_array_equal(got.values, exact.values)
    wanted = {"keep": at / 8192, "offsets": np.array([0, 8192])}
    kept = sp.select_tokens(np.abs(x), **wanted).index
    assert_array_equal(kept, reference.select_tokens(np.abs(x), **wanted).index)


def test_many_long_rows_of_random_scores() -> None:
    """One sample in a thousand is that far off by itself."""
    x = np.random.default_rng(8).standard_normal((2000, 5000)).astype(np.float32)
    got = sp.topk(x, 2500)
    kept = np.partition(x, 2500, axis=1)[:, 2500:].min(axis=1, keepdims=True)
    assert_array_equal(got.indices, np.nonzero(x >= kept)[1].reshape(2000, 2500))


@given(
    lengths=st.lists(st.integers(0, 40), max_size=6),
    data=st.data(),
    one=st.booleans(),
)
def test_packed_sequences_each_on_their_own(
    lengths: list[int], data: st.DataObject, one: bool
) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    x = np.round(normal((int(offsets[-1]),), seed=sum(lengths)) * 2) / 2
    if one:
        k: int | np.ndarray = data.draw(st.integers(0, min(lengths, default=0)))
    else:
        k = np.array([data.draw(st.integers(0, n)) for n in lengths], np.int64)
    got = sp.topk(x, k, offsets=offsets)
    exact = reference.topk(x, k, offsets=offsets)
    assert_array_equal(got.indices, exact.indices)
    assert_array_equal(got.values, exact.values)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (2, 0)], ids=str)
def test_empty(shape: tuple[int, ...]) -> None:
    got = sp.topk(np.zeros(shape, np.float32), 0)
    assert got.values.shape == got.indices.shape == (*shape[:-1], 0)


@pytest.mark.parametrize(
    "layout", ["every other", "column-major", "reversed", "part of a larger array"]
)
def test_strided_and_torch(layout: str) -> None:
    x = normal((3, 4, 33))
    expected = sp.topk(x, 9)
    got = sp.topk(strided_copies(x)[layout], 9)
    assert_array_equal(got.indices, expected.indices)
    assert_array_equal(got.values, expected.values)
    tensors = sp.topk(to_torch(x), 9)
    assert isinstance(tensors.values, torch.Tensor)
    assert tensors.indices.dtype == torch.int64
    assert_array_equal(tensors.indices.numpy(), expected.indices)
