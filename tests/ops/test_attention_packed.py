"""sp.attention on packed tokens: each sequence as if it were alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import spatile as sp
from spatile import reference

from .arrays import DTYPES, f64, normal, strided_copies, to_torch

pytestmark = pytest.mark.usefixtures("cpu_tier")

# Storage type: how far two ways of computing the same thing may lie apart, values near 1.
CLOSE = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}


def starts(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def packed(
    lengths: list[int],
    kv_lengths: list[int],
    dtype: str = "float32",
    h: int = 4,
    hk: int = 2,
    d: int = 16,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    tq, tk = sum(lengths), sum(kv_lengths)
    return (
        normal((tq, h, d), seed=1, dtype=dtype),
        normal((tk, hk, d), seed=2, dtype=dtype),
        normal((tk, hk, d), seed=3, dtype=dtype),
        normal((tq, h, d), seed=4, dtype=dtype),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "lengths", [[1], [16, 16], [5, 0, 17, 1, 33], [0], [0, 0, 3], [100, 2, 64]], ids=str
)
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (3, 2)}], ids=str)
def test_values(lengths: list[int], options: dict[str, Any], dtype: str) -> None:
    q, k, v, _ = packed(lengths, lengths, dtype)
    offsets = starts(lengths)
    got = sp.attention(q, k, v, offsets=offsets, **options, return_lse=True, return_importance=True)
    exact = reference.attention(
        f64(q), f64(k), f64(v), offsets=offsets, **options, return_lse=True, return_importance=True
    )
    assert got.out.dtype == DTYPES[dtype]
    assert got.lse.shape == (4, len(q))
    assert got.head_importance.shape == (len(lengths), 4)
    assert_allclose(f64(got.out), exact.out, atol=CLOSE[dtype])
    assert_allclose(got.lse, exact.lse, atol=1e-5)
    assert_allclose(got.token_importance, exact.token_importance, rtol=1e-5, atol=1e-6)
    # Processors that multiply bfloat16 round the probabilities to it: 8 bits, and the sum of many.
    rtol = 1e-3 if dtype == "bfloat16" else 1e-4
    assert_allclose(got.head_importance, exact.head_importance, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_keys_packed_otherwise(causal: bool) -> None:
    """Cross-attention; a sequence without keys, one without queries."""
    lengths, kv_lengths = [4, 3, 0, 20, 7], [6, 0, 5, 17, 7]
    q, k, v, grad = packed(lengths, kv_lengths)
    options = {"offsets": starts(lengths), "kv_offsets": starts(kv_lengths), "causal": causal}
    got = sp.attention(q, k, v, **options, return_lse=True, return_importance=True)
    exact = reference.attention(q, k, v, **options, return_lse=True, return_importance=True)
    assert_allclose(got.out, exact.out, atol=2e-6)
    assert not got.out[4:7].any()
    assert (got.lse[:, 4:7] == -np.inf).all()
    assert_allclose(got.token_importance, exact.token_importance, rtol=1e-5, atol=1e-6)
    back = sp.attention_backward(grad, q, k, v, got.out, got.lse, **options)
    expected = reference.attention_backward(grad, q, k, v, None, None, **options)
    for ours, theirs in zip((back.q, back.k, back.v), expected[:3], strict=True):
        assert_allclose(ours, theirs, atol=1e-5)


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    causal=st.booleans(),
    window=st.none() | st.tuples(st.none() | st.integers(0, 9), st.none() | st.integers(0, 9)),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    dropout=st.sampled_from([0.0, 0.3]),
)
def test_packed_equals_batched(
    lengths: list[int],
    causal: bool,
    window: Any,
    heads: tuple[int, int],
    dropout: float,
) -> None:
    q, k, v, grad = packed(lengths, lengths, h=heads[0], hk=heads[1])
    offsets, longest = starts(lengths), max(lengths)
    options = {"causal": causal, "window": window, "dropout": dropout, "seed": 11}
    got = sp.attention(q, k, v, offsets=offsets, **options, return_lse=True, return_importance=True)

    def batched(x: np.ndarray) -> np.ndarray:
        full = np.zeros((len(lengths), longest, *x.shape[1:]), x.dtype)
        for n, length in enumerate(lengths):
            full[n, :length] = x[offsets[n] : offsets[n + 1]]
        return full

    valid = np.arange(longest) < np.array(lengths)[:, None]
    full = [batched(x) for x in (q, k, v, grad)]
    options["lengths"] = np.array(lengths)
    padded = sp.attention(*full[:3], **options, return_lse=True, return_importance=True)
    assert_allclose(got.out, padded.out[valid], atol=2e-6)
    assert_allclose(got.lse, padded.lse.transpose(0, 2, 1)[valid].T, atol=1e-5)
    assert_allclose(got.token_importance, padded.token_importance[valid], atol=1e-4)
    assert_allclose(got.head_importance, padded.head_importance, rtol=1e-4, atol=1e-4)
    assert not padded.out[~valid].any()
    back = sp.attention_backward(full[3], *full[:3], padded.out, padded.lse, **options)
    options.pop("lengths")
    ours = sp.attention_backward(grad, q, k, v, got.out, got.lse, offsets=offsets, **options)
    for a, b in zip((ours.q, ours.k, ours.v), (back.q, back.k, back.v), strict=True):
        assert_allclose(a, b[valid], atol=1e-4)
        assert not b[~valid].any()


@given(order=st.permutations(range(4)), causal=st.booleans())
def test_the_order_of_the_batch_does_not_matter(order: list[int], causal: bool) -> None:
    lengths = np.array([7, 0, 33, 16])
    q, k, v = (normal((4, 33, 2, 16), seed=s) for s in (1, 2, 3))
    first = sp.attention(q, k, v, lengths=lengths, causal=causal)
    again = sp.attention(q[order], k[order], v[order], lengths=lengths[order], causal=causal)
    assert_array_equal(again, first[order])


@given(order=st.permutations(range(12)))
def test_the_order_of_the_keys_does_not_matter(order: list[int]) -> None:
    q, k, v = (normal((2, 12, 2, 16), seed=s) for s in (1, 2, 3))
    first = sp.attention(q, k, v, return_importance=True)
    again = sp.attention(q, k[:, order], v[:, order], return_importance=True)
    assert_allclose(again.out, first.out, atol=2e-6)
    assert_allclose(again.token_importance, first.token_importance[:, order], rtol=1e-5)


def test_no_sequences_at_all() -> None:
    q, k, v, _ = packed([], [])
    got = sp.attention(
        q, k, v, offsets=np.zeros(1, np.int64), return_lse=True, return_importance=True
    )
    assert got.out.shape == (0, 4, 16)
    assert got.lse.shape == (4, 0)
    assert got.token_importance.shape == (0,)
    assert got.head_importance.shape == (0, 4)


@pytest.mark.parametrize("kind", [np.int32, np.int64, list])
def test_offsets_of_any_integer_kind(kind: Any) -> None:
    q, k, v, _ = packed([3, 5], [3, 5])
    offsets = [0, 3, 8] if kind is list else np.array([0, 3, 8], kind)
    assert_allclose(
        sp.attention(q, k, v, offsets=offsets),
        reference.attention(q, k, v, offsets=[0, 3, 8]),
        atol=2e-6,
    )


@pytest.mark.parametrize(
    "layout", ["every other", "column-major", "reversed", "part of a larger array"]
)
def test_strided_and_torch(layout: str) -> None:
    q, k, v, _ = packed([6, 19], [6, 19])
    offsets = np.array([0, 6, 25])
    expected = sp.attention(q, k, v, offsets=offsets)
    views = [strided_copies(x)[layout] for x in (q, k, v)]
    assert_array_equal(sp.attention(*views, offsets=offsets), expected)
    tensors = [to_torch(x) for x in (q, k, v)]
    assert_array_equal(sp.attention(*tensors, offsets=offsets).numpy(), expected)
