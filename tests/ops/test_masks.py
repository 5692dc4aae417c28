"""sp.prune_mask, sp.expand_mask and sp.apply_mask_."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import spatile as sp
from spatile import reference
from spatile.patterns import as_pattern

from .arrays import DTYPES, assert_guards_intact, f64, guarded, normal, strided_copies, to_torch

pytestmark = pytest.mark.usefixtures("cpu_tier")

PATTERNS = ["tile", "tile:32x16", "tile:3x5", "row", "column", "element", "head:8", "head:8:in"]
SCOPES = ["matrix", "global", "row-balanced"]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", [(1, 1), (15, 17), (64, 100), (33, 320)], ids=str)
def test_masks_equal_the_definition(shape: tuple[int, int], pattern: str, scope: str) -> None:
    w = normal(shape)
    for sparsity in (0.0, 0.1, 0.5, 0.8, 0.99):
        got = sp.prune_mask(w, pattern=pattern, sparsity=sparsity, scope=scope)
        assert got.dtype == np.bool_
        expected = reference.prune_mask(w, pattern=pattern, sparsity=sparsity, scope=scope)
        assert_array_equal(got, expected)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_list_of_matrices(scope: str) -> None:
    """Unequal shapes and, for the global scope, unequal group sizes: norms over √size compete."""
    matrices = [normal((64, 48), scale=0.5), normal((20, 33), seed=1), normal((16, 16), seed=2)]
    got = sp.prune_mask(matrices, pattern="tile", sparsity=0.6, scope=scope)
    expected = reference.prune_mask(matrices, pattern="tile", sparsity=0.6, scope=scope)
    assert isinstance(got, list)
    assert len(got) == 3
    for a, b in zip(got, expected, strict=True):
        assert_array_equal(a, b)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_pattern_for_each_matrix(scope: str) -> None:
    matrices = [normal((64, 48)), normal((48, 64), seed=1), normal((32, 32), seed=2)]
    patterns = ["tile", "row", sp.Tile(8, 8)]
    got = sp.prune_mask(matrices, pattern=patterns, sparsity=0.5, scope=scope)
    expected = reference.prune_mask(matrices, pattern=patterns, sparsity=0.5, scope=scope)
    for a, b in zip(got, expected, strict=True):
        assert_array_equal(a, b)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("scope", SCOPES)
def test_of_equals_the_earlier_is_kept(pattern: str, scope: str) -> None:
    """Groups of one size, all weights ±1: every score ties."""
    w = np.sign(normal((96, 240)))
    if pattern == "tile:3x5":
        w = np.sign(normal((30, 50)))
    got = sp.prune_mask([w, w], pattern=pattern, sparsity=0.3, scope=scope)
    groups = got[0].size
    if scope == "global":
        pruned = min(math.floor(0.3 * 2 * groups + 0.5), 2 * groups - 1)
        assert_array_equal(
            np.concatenate([m.ravel() for m in got]), np.arange(2 * groups) < 2 * groups - pruned
        )
        return
    for mask in got:
        unit = mask.shape[1] if scope == "row-balanced" else groups
        pruned = min(math.floor(0.3 * unit + 0.5), unit - 1)
        assert_array_equal(mask.ravel(), np.arange(groups) % unit < unit - pruned)


@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    pattern=st.sampled_from(PATTERNS),
    sparsity=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 1000),
)
def test_counts_are_exact_and_the_kept_are_the_largest(
    shape: tuple[int, int], pattern: str, sparsity: float, seed: int
) -> None:
    w = normal(shape, seed=seed)
    mask = sp.prune_mask(w, pattern=pattern, sparsity=sparsity)
    n = mask.size
    assert (~mask).sum() == min(math.floor(sparsity * n + 0.5), n - 1)
    ones = np.ones(shape)
    sizes = reference.group_norms(ones, pattern=pattern) ** 2
    scores = reference.group_norms(w, pattern=pattern) / np.sqrt(sizes)
    if (~mask).any():
        assert scores[~mask].max() <= scores[mask].min() * (1 + 1e-5)


@given(sparsities=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)), seed=st.integers(0, 100))
def test_a_sparser_mask_keeps_a_subset(sparsities: tuple[float, float], seed: int) -> None:
    low, high = sorted(sparsities)
    w = normal((50, 70), seed=seed)
    dense, sparse = (sp.prune_mask(w, pattern="tile:4x4", sparsity=s) for s in (low, high))
    assert (sparse <= dense).all()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pruning_the_pruned_is_the_same(pattern: str) -> None:
    w = normal((96, 240))
    mask = sp.prune_mask(w, pattern=pattern, sparsity=0.5)
    once = sp.apply_mask_(w.copy(), mask, pattern=pattern)
    assert_array_equal(sp.prune_mask(once, pattern=pattern, sparsity=0.5), mask)
    assert_array_equal(sp.apply_mask_(once.copy(), mask, pattern=pattern), once)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
@pytest.mark.parametrize("pattern", ["tile", "element"])
def test_weights_whose_squares_leave_float32(pattern: str, scale: float) -> None:
    w = normal((48, 48), scale=scale)
    expected = reference.prune_mask(w, pattern=pattern, sparsity=0.5)
    assert_array_equal(sp.prune_mask(w, pattern=pattern, sparsity=0.5), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_storage_types(dtype: str) -> None:
    w = normal((64, 100), dtype=dtype)
    for pattern in ("tile", "element"):
        expected = reference.prune_mask(f64(w), pattern=pattern, sparsity=0.5)
        assert_array_equal(sp.prune_mask(w, pattern=pattern, sparsity=0.5), expected)


def test_a_matrix_of_one_group_keeps_it() -> None:
    assert sp.prune_mask(normal((5, 5)), pattern="tile", sparsity=0.99).all()


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)], ids=str)
def test_matrices_without_groups(shape: tuple[int, int]) -> None:
    mask = sp.prune_mask(np.zeros(shape, np.float32), pattern="tile", sparsity=0.5)
    assert mask.shape == as_pattern("tile").mask_shape(shape)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", [(1, 1), (15, 17), (64, 100), (40, 1100), (1100, 40)], ids=str)
def test_expand_and_apply(shape: tuple[int, int], pattern: str) -> None:
    mask = np.random.default_rng(3).random(as_pattern(pattern).mask_shape(shape)) < 0.5
    expected = reference.expand_mask(mask, shape, pattern=pattern)
    got = sp.expand_mask(mask, shape, pattern=pattern)
    assert got.dtype == np.bool_
    assert_array_equal(got, expected)
    for dtype in DTYPES:
        w = normal(shape, dtype=dtype)
        w[0, 0] = np.nan
        masked = w.copy()
        assert sp.apply_mask_(masked, mask, pattern=pattern) is masked
        assert_array_equal(f64(masked), np.where(expected, f64(w), 0))


@pytest.mark.parametrize(
    "layout", ["every other", "column-major", "reversed", "part of a larger array"]
)
def test_strided(layout: str) -> None:
    w, mask = normal((33, 50)), np.random.default_rng(3).random((3, 4)) < 0.5
    view = strided_copies(w)[layout]
    assert_array_equal(
        sp.prune_mask(view, pattern="tile", sparsity=0.4),
        sp.prune_mask(w, pattern="tile", sparsity=0.4),
    )
    mask_view = strided_copies(mask)[layout]
    expanded = sp.expand_mask(mask_view, (33, 50), pattern="tile")
    assert_array_equal(expanded, reference.expand_mask(mask, (33, 50), pattern="tile"))
    assert sp.apply_mask_(view, mask_view, pattern="tile") is view
    assert_array_equal(view, np.where(expanded, w, 0))


def test_apply_writes_nothing_around() -> None:
    w, memory = guarded((17, 33), np.float32)
    w[...] = 1
    sp.apply_mask_(w, np.zeros((2, 3), bool), pattern="tile")
    assert not w.any()
    assert_guards_intact(memory)


def test_torch_in_torch_out() -> None:
    w = normal((33, 50))
    tensor = to_torch(w)
    mask = sp.prune_mask(tensor, pattern="tile", sparsity=0.5)
    assert isinstance(mask, torch.Tensor)
    assert mask.dtype == torch.bool
    expected = sp.prune_mask(w, pattern="tile", sparsity=0.5)
    assert_array_equal(mask.numpy(), expected)
    listed: Any = sp.prune_mask([tensor, tensor], pattern="tile", sparsity=0.5)
    assert all(isinstance(m, torch.Tensor) for m in listed)
    assert isinstance(sp.expand_mask(mask, (33, 50), pattern="tile"), torch.Tensor)
    assert sp.apply_mask_(tensor, mask, pattern="tile") is tensor
    assert_array_equal(tensor.numpy(), sp.apply_mask_(w.copy(), expected, pattern="tile"))
