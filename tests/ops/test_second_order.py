"""sp.second_order_prune and its parts against their definition, and that against least squares."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import spatile as sp
from spatile import reference

from .arrays import f64, normal
from .layer_inputs import inputs, output_error

pytestmark = pytest.mark.usefixtures("cpu_tier")

PATTERNS = [
    *("tile", "tile:8x4", "tile:5x7", "tile:16x24", "tile:100x3"),
    *("column", "row", "head:8", "head:8:in", "element"),
]
SHAPES = [(16, 16), (33, 50), (24, 70)]


@cache
def truth(shape: tuple[int, int], pattern: str) -> tuple[np.ndarray, np.ndarray, Any]:
    """Inputs, weights and the definition's removals: the same for every CPU tier, so kept."""
    x, w = inputs(shape[1], dead=2), normal(shape, seed=1)
    return x, w, reference.second_order_removals(w, x.T @ x, pattern=pattern)


def assert_removals_equal(got: Any, expected: Any, rtol: float = 1e-7) -> None:
    assert_array_equal(got.order, expected.order)
    for a, b in ((got.cost, expected.cost), (got.price, expected.price)):
        assert a.dtype == np.float64
        assert_allclose(a, b, rtol=rtol, atol=1e-10 * np.abs(b).max())


# ---- the definition ------------------------------------------------------------------------------


def least_squares(x: np.ndarray, w: np.ndarray, keep: np.ndarray, shift: float) -> np.ndarray:
    """Each row's kept weights, by the least squares that they stand for; damping is data too."""
    data = np.vstack([x, math.sqrt(shift) * np.eye(w.shape[1])])
    result = np.zeros_like(w)
    for row, kept in zip(range(len(w)), keep, strict=True):
        result[row, kept] = np.linalg.lstsq(data[:, kept], data @ w[row], rcond=None)[0]
    return result


@pytest.mark.parametrize("pattern", ["tile:4x3", "column", "element"])
def test_the_definition_is_the_least_squares_solution(pattern: str) -> None:
    x, w = inputs(12, rows=40), f64(normal((8, 12)))
    mask = np.random.default_rng(4).random(sp.as_pattern(pattern).mask_shape(w.shape)) < 0.6
    found = reference.second_order_apply(w, x.T @ x, mask, pattern=pattern, damping=0.02)
    keep = reference.expand_mask(mask, w.shape, pattern=pattern)
    expected = least_squares(x, w, keep, 0.02 * np.diagonal(x.T @ x).mean())
    assert_allclose(found.w, expected, atol=1e-8)
    assert found.cost == pytest.approx(output_error(x, w, found.w))


def test_the_definition_removes_what_costs_least_each_time() -> None:
    """Each step by brute force: every group tried, the kept weights solved for anew."""
    x, w = inputs(12, rows=40), f64(normal((4, 12)))
    shift = 0.01 * np.diagonal(x.T @ x).mean()
    found = reference.second_order_removals(w, x.T @ x, pattern="tile:4x3")
    keep, before = np.ones((4, 12), bool), 0.0
    for step in range(4):
        errors = {}
        for group in {*range(4)} - {*found.order[0, :step]}:
            trial = keep.copy()
            trial[:, 3 * group : 3 * group + 3] = False
            change = least_squares(x, w, trial, shift) - w
            errors[group] = np.sum((x @ change.T) ** 2) + shift * np.sum(change**2)
        best = min(errors, key=errors.__getitem__)
        assert best == found.order[0, step]
        assert found.cost[0, step] == pytest.approx(errors[best] - before)
        keep[:, 3 * best : 3 * best + 3] = False
        before = errors[best]


# ---- the op against the definition ---------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_removals_masks_and_weights_equal_the_definition(
    shape: tuple[int, int], pattern: str
) -> None:
    x, w, expected = truth(shape, pattern)
    gram = x.T @ x
    found = sp.second_order_removals(w, gram, pattern=pattern)
    assert_removals_equal(found, expected)
    for sparsity in (0.0, 0.3, 0.5, 0.8, 0.99):
        mask = reference.second_order_mask(expected, sparsity=sparsity)
        assert_array_equal(sp.second_order_mask(found, sparsity=sparsity), mask)
        exact = reference.second_order_apply(w, gram, mask, pattern=pattern)
        pruned = sp.second_order_prune(w, gram, pattern=pattern, sparsity=sparsity)
        assert_array_equal(pruned.mask, mask)
        assert_allclose(pruned.w, exact.w, rtol=1e-5, atol=1e-5)
        assert pruned.cost == pytest.approx(output_error(x, w, pruned.w), rel=1e-8, abs=1e-12)
        assert not pruned.w[~reference.expand_mask(mask, shape, pattern=pattern)].any()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_row_weights_equal_the_definition(pattern: str) -> None:
    """Also weights so small that their squares would vanish in single precision."""
    x, w, _ = truth((40, 50), pattern)
    gram = x.T @ x
    for scale in (1.0, 1e-30):
        weight = scale * np.random.default_rng(0).gamma(0.5, size=40)
        weight[3] = 0.0
        found = sp.second_order_removals(w, gram, pattern=pattern, row_weight=weight)
        expected = reference.second_order_removals(w, gram, pattern=pattern, row_weight=weight)
        assert_removals_equal(found, expected, rtol=2e-6)  # weighted rows are float32


def test_row_weights_of_one_change_nothing_and_of_nought_make_free() -> None:
    x, w, _ = truth((32, 48), "tile")
    gram = x.T @ x
    plain = sp.second_order_removals(w, gram, pattern="tile")
    ones = sp.second_order_removals(w, gram, pattern="tile", row_weight=np.ones(32))
    assert_array_equal(ones.order, plain.order)
    assert_array_equal(ones.cost, plain.cost)
    free = sp.second_order_removals(
        w, gram, pattern="tile", row_weight=np.repeat([0.0, 1.0], 16).astype(np.float32)
    )
    assert not free.cost[0].any()
    assert_array_equal(free.cost[1], plain.cost[1])
    assert not sp.second_order_removals(w, gram, pattern="tile", row_weight=np.zeros(32)).cost.any()


def test_no_rows_have_no_weights() -> None:
    for weight in (None, np.zeros(0)):
        found = sp.second_order_removals(
            np.zeros((0, 48), np.float32), np.eye(48), pattern="tile", row_weight=weight
        )
        assert found.order.shape == found.cost.shape == found.price.shape == (0, 3)


def test_prices_of_several_matrices_count_as_they_are() -> None:
    x, w = inputs(48), normal((32, 48))
    gram = x.T @ x
    found = [
        sp.second_order_removals(w, gram, pattern="tile", row_weight=np.full(32, weight))
        for weight in (1.0, 1e-6)
    ]
    for sparsity in (0.3, 0.5, 0.8):
        masks = sp.second_order_mask(found, sparsity=sparsity, scope="global", relative=False)
        expected = reference.second_order_mask(
            [reference.Removals(*r) for r in found],
            sparsity=sparsity,
            scope="global",
            relative=False,
        )
        for mask, right in zip(masks, expected, strict=True):
            assert_array_equal(mask, right)
    masks = sp.second_order_mask(found, sparsity=0.5, scope="global", relative=False)
    assert masks[0].all()
    assert not masks[1].any()
    masks = sp.second_order_mask(found, sparsity=0.5, scope="global")
    assert_array_equal(masks[0], masks[1])


@pytest.mark.parametrize("pattern", ["tile", "column", "tile:16x60"])
def test_more_columns_than_one_pass_takes(pattern: str) -> None:
    """Histories, systems and products longer than what stays in cache at a time."""
    x, w, expected = truth((18, 610), pattern) if pattern == "tile" else truth((7, 300), pattern)
    gram = x.T @ x
    assert_removals_equal(sp.second_order_removals(w, gram, pattern=pattern), expected)
    for sparsity in (0.4, 0.7):
        mask = reference.second_order_mask(expected, sparsity=sparsity)
        got = sp.second_order_apply(w, gram, mask, pattern=pattern)
        exact = reference.second_order_apply(w, gram, mask, pattern=pattern)
        assert_allclose(got.w, exact.w, rtol=1e-5, atol=1e-5)
        assert got.cost == pytest.approx(exact.cost, rel=1e-4)


@pytest.mark.parametrize("damping", [1e-4, 0.1, 10.0])
def test_damping(damping: float) -> None:
    x, w = inputs(40), normal((32, 40))
    got = sp.second_order_prune(w, x.T @ x, pattern="tile:16x8", sparsity=0.4, damping=damping)
    exact = reference.second_order_prune(
        w, x.T @ x, pattern="tile:16x8", sparsity=0.4, damping=damping
    )
    assert_array_equal(got.mask, exact.mask)
    assert_allclose(got.w, exact.w, rtol=1e-4, atol=1e-4)
    assert got.cost == pytest.approx(output_error(x, w, got.w))


def test_any_mask_is_made_up_for() -> None:
    """Blocks that keep most, few, all and none of their groups."""
    x, w = inputs(80), normal((64, 80))
    mask = np.array([[1, 1, 0, 1, 1], [0, 0, 1, 0, 0], [1] * 5, [0] * 5], bool)
    got = sp.second_order_apply(w, x.T @ x, mask, pattern="tile")
    exact = reference.second_order_apply(w, x.T @ x, mask, pattern="tile")
    assert_allclose(got.w, exact.w, rtol=1e-5, atol=1e-5)
    assert_array_equal(got.w[32:48], w[32:48])
    assert not got.w[48:].any()
    assert got.cost == pytest.approx(output_error(x, w, got.w))
    untouched = sp.second_order_apply(w, x.T @ x, np.ones((4, 5), bool), pattern="tile")
    assert_array_equal(untouched.w, w)
    assert untouched.cost == 0.0


@pytest.mark.parametrize("scope", ["matrix", "global"])
def test_a_list_of_matrices(scope: str) -> None:
    shapes, patterns = [(32, 48), (48, 20), (16, 64)], ["tile", "tile:16x4", "column"]
    xs = [inputs(n, seed=n) * scale for (_, n), scale in zip(shapes, (1, 30, 0.1), strict=True)]
    ws = [normal(shape, seed=i) for i, shape in enumerate(shapes)]
    grams = [x.T @ x for x in xs]
    got = sp.second_order_prune(ws, grams, pattern=patterns, sparsity=0.4, scope=scope)
    exact = reference.second_order_prune(ws, grams, pattern=patterns, sparsity=0.4, scope=scope)
    assert len(got) == 3
    for a, b in zip(got, exact, strict=True):
        assert_array_equal(a.mask, b.mask)
        assert_allclose(a.w, b.w, rtol=1e-5, atol=1e-5)
    groups = [m.mask.size for m in got]
    if scope == "global":
        gone = sum(int((~m.mask).sum()) for m in got)
        assert gone == math.floor(0.4 * sum(groups) + 0.5)
    else:
        assert [int((~m.mask).sum()) for m in got] == [math.floor(0.4 * n + 0.5) for n in groups]


def test_across_matrices_the_error_counts_relative_to_the_output() -> None:
    """A matrix whose inputs are a thousand times as large loses no less than before."""
    x, ws = inputs(64), [normal((32, 64)), normal((32, 64), seed=1)]
    masks = []
    for scale in (1.0, 1000.0):
        grams = [x.T @ x, scale**2 * (x.T @ x)]
        found = sp.second_order_prune(ws, grams, pattern="tile", sparsity=0.5, scope="global")
        masks.append([m.mask for m in found])
    assert_array_equal(masks[0], masks[1])


@pytest.mark.parametrize("sparsity", [0.0, 0.01, 0.249, 0.25, 0.5, 0.9, 0.9999])
def test_counts_are_exact(sparsity: float) -> None:
    x, w = inputs(50), normal((40, 50))
    found = [sp.second_order_removals(w, x.T @ x, pattern=p) for p in ("tile", "tile:8x10")]
    for removals in found:
        n = removals.order.size
        mask = sp.second_order_mask(removals, sparsity=sparsity)
        assert (~mask).sum() == min(math.floor(sparsity * n + 0.5), n - 1)
    n = sum(r.order.size for r in found)
    masks = sp.second_order_mask(found, sparsity=sparsity, scope="global")
    assert sum((~m).sum() for m in masks) == min(math.floor(sparsity * n + 0.5), n - 1)
