"""The defects of E.T.'s released kernels, each as a test that they would have failed."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import spatile as sp
from spatile import reference

from .arrays import normal

pytestmark = pytest.mark.usefixtures("cpu_tier")


def test_softmax_base_is_e_not_two() -> None:
    """Scores 0 and 1: e/(1 + e) = 0.7311 against 2/(1 + 2) = 0.6667."""
    expected = np.e / (1 + np.e)
    assert_allclose(sp.softmax(np.array([0, 1], np.float32))[1], expected, rtol=1e-6)
    q = np.zeros((1, 1, 1, 8), np.float32)
    k = np.zeros((1, 2, 1, 8), np.float32)
    q[..., 0], k[0, 1, 0, 0] = 1, 1
    v = np.zeros((1, 2, 1, 8), np.float32)
    v[0, 1] = 1
    got = sp.attention(q, k, v, scale=1.0, return_lse=True)
    assert_allclose(got.out, np.full((1, 1, 1, 8), expected), rtol=1e-6)
    assert_allclose(got.lse, [[[np.log(1 + np.e)]]], rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 16, 33, 128, 200])
@pytest.mark.parametrize("width", [16, 48, 128, 200])
@pytest.mark.parametrize("pattern", ["dense", "tile", "row", "column", "element"])
def test_leading_dimension_is_the_input_width(pattern: str, width: int, rows: int) -> None:
    """The tile product took S for X's leading dimension: right only where S equals the width."""
    w, x = normal((64, width), seed=1), normal((rows, width), seed=2)
    if pattern == "dense":
        assert_allclose(sp.linear(x, w), reference.linear(x, w), atol=1e-4)
        return
    mask = reference.prune_mask(w, pattern=pattern, sparsity=0.5)
    got = sp.linear(x, sp.pack(w, mask, pattern=pattern))
    assert_allclose(got, reference.linear(x, reference.pack(w, mask, pattern=pattern)), atol=1e-4)


@pytest.mark.parametrize("s", [1, 15, 16, 17, 100, 240])
def test_every_element_of_the_output_is_stored(s: int) -> None:
    """A kernel kept its result in registers: here memory that was NaN must not be so any more."""
    q, k, v = (normal((2, s, 3, 16), seed=n) for n in (1, 2, 3))
    out = np.full((2, s, 3, 16), np.nan, np.float32)
    sp.attention(q, k, v, out=out)
    assert_allclose(out, reference.attention(q, k, v), atol=2e-6)
    w, x = normal((70, 48), seed=4), normal((s, 48), seed=5)
    for weights in (w, sp.pack(w)):
        y = np.full((s, 70), np.nan, np.float32)
        sp.linear(x, weights, out=y)
        assert_allclose(y, reference.linear(x, w), atol=1e-4)


@pytest.mark.parametrize(("sq", "sk"), [(16, 16), (16, 48), (17, 33), (64, 100), (100, 64)])
@pytest.mark.parametrize("kind", ["mask", "bias"])
def test_the_mask_is_read_with_its_own_row_stride(kind: str, sq: int, sk: int) -> None:
    """A mask of identity-like rows: each query must see exactly the keys of its own row."""
    q, k, v = normal((2, sq, 2, 16)), normal((2, sk, 2, 16), seed=1), normal((2, sk, 2, 16), seed=2)
    rows = np.arange(sq)[:, None]
    allowed = np.broadcast_to((np.arange(sk) - 3 * rows) % 7 == 0, (2, 2, sq, sk)).copy()
    allowed[1] = ~allowed[1]
    bias = np.where(allowed, 0, -np.inf).astype(np.float32)
    given = {"mask": allowed} if kind == "mask" else {"bias": bias}
    got = sp.attention(q, k, v, **given)
    assert_allclose(got, reference.attention(q, k, v, mask=allowed), atol=2e-6)


@pytest.mark.parametrize("s", [16, 32, 48, 64, 96, 320])
def test_both_halves_of_a_row_are_masked_and_maximised(s: int) -> None:
    """A kernel masked, and took the maximum of, only half of each row."""
    q, k, v = (normal((1, s, 1, 16), seed=n) for n in (1, 2, 3))
    for hidden in (slice(0, s // 2), slice(s // 2, s)):
        mask = np.ones((1, 1, 1, s), bool)
        mask[..., hidden] = False
        got = sp.attention(q, k, v, mask=mask, return_importance=True)
        assert_array_equal(got.token_importance[0] == 0, ~mask[0, 0, 0])
        assert_allclose(got.out, reference.attention(q, k, v, mask=mask), atol=2e-6)
    for position in (0, s // 4, s // 2, s - 1):
        # The row's maximum is far above the rest: taken from the wrong half, exp overflows.
        bias = np.zeros((1, 1, 1, s), np.float32)
        bias[..., position] = 500
        got = sp.attention(q, k, v, bias=bias)
        assert_allclose(got, np.broadcast_to(v[:, position : position + 1], v.shape), atol=1e-6)
