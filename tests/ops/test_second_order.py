"""sp.second_order_prune and its parts: removals, mask, weights that make up for what goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import spatile as sp
from spatile import reference

from .arrays import DTYPES, assert_guards_intact, f64, guarded, normal, strided_copies, to_torch

pytestmark = pytest.mark.usefixtures("cpu_tier")

PATTERNS = [
    *("tile", "tile:8x4", "tile:5x7", "tile:16x24", "tile:100x3"),
    *("column", "row", "head:8", "head:8:in", "element"),
]
SHAPES = [(16, 16), (33, 50), (24, 70)]


def inputs(n: int, *, rows: int = 300, dead: int = 0, seed: int = 0) -> np.ndarray:
    """Correlated inputs (rows, n), the last ``dead`` of a shuffled few always zero."""
    rng = np.random.default_rng(seed)
    rank = n // 3 + 1
    x = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, n))
    x += 0.3 * rng.standard_normal((rows, n))
    x[:, rng.permutation(n)[:dead]] = 0.0
    return x


def output_error(x: np.ndarray, before: Any, after: Any) -> float:
    """‖X·ΔWᵀ‖², from the outputs themselves."""
    return float(np.sum((x @ (f64(after) - f64(before)).T) ** 2))


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


# ---- the definition -----------------------------------------------------------------------------


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


# ---- the op against the definition --------------------------------------------------------------


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


# ---- what it promises ---------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["tile", "tile:16x4", "column", "head:16:in"])
@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
def test_better_than_magnitude_and_than_no_compensation(pattern: str, sparsity: float) -> None:
    x, w = inputs(96, rows=500), normal((64, 96))
    gram = x.T @ x
    pruned = sp.second_order_prune(w, gram, pattern=pattern, sparsity=sparsity)
    plain = sp.apply_mask_(w.copy(), pruned.mask, pattern=pattern)
    assert pruned.cost < 0.9 * output_error(x, w, plain)
    by_norm = sp.prune_mask(w, pattern=pattern, sparsity=sparsity)
    assert (~by_norm).sum() == (~pruned.mask).sum()
    made_up = sp.second_order_apply(w, gram, by_norm, pattern=pattern)
    masked = sp.apply_mask_(w.copy(), by_norm, pattern=pattern)
    assert made_up.cost < output_error(x, w, masked)
    # One removal at a time is no search: of five heads in six another choice may be the better one.
    assert pruned.cost < (
        output_error(x, w, masked) if pattern.startswith("head") else made_up.cost
    )


@pytest.mark.parametrize("pattern", ["tile", "tile:8x4", "column", "row", "head:16", "element"])
def test_independent_inputs_leave_it_to_the_magnitude(pattern: str) -> None:
    w = normal((32, 48))
    pruned = sp.second_order_prune(w, np.eye(48), pattern=pattern, sparsity=0.5)
    mask = sp.prune_mask(w, pattern=pattern, sparsity=0.5)
    assert_array_equal(pruned.mask, mask)
    assert_array_equal(pruned.w, sp.apply_mask_(w.copy(), mask, pattern=pattern))
    assert pruned.cost == pytest.approx(np.sum(f64(w - pruned.w) ** 2))


@pytest.mark.parametrize("pattern", ["tile", "column", "row"])
def test_of_equals_the_earlier_is_kept(pattern: str) -> None:
    w = np.sign(normal((32, 48)))
    for scope in ("matrix", "global"):
        got = sp.second_order_prune(
            [w, w], [np.eye(48)] * 2, pattern=pattern, sparsity=0.3, scope=scope
        )
        expected = sp.prune_mask([w, w], pattern=pattern, sparsity=0.3, scope=scope)
        for a, b in zip(got, expected, strict=True):
            assert_array_equal(a.mask, b)


@pytest.mark.parametrize("pattern", ["tile", "column", "row"])
def test_what_was_pruned_stays_pruned(pattern: str) -> None:
    """Pruning on, a little at a time: groups that are zero cost nothing, so they go again first."""
    x, w = inputs(96), normal((64, 96))
    before = sp.second_order_prune(w, x.T @ x, pattern=pattern, sparsity=0.3)
    after = sp.second_order_prune(before.w, x.T @ x, pattern=pattern, sparsity=0.6)
    assert (after.mask <= before.mask).all()
    assert (~after.mask).sum() > (~before.mask).sum()


def test_removals_are_worth_their_costs() -> None:
    """The costs of a block's first removals are the damped error of the weights after them."""
    x, w = inputs(80), normal((16, 80))
    found = sp.second_order_removals(w, x.T @ x, pattern="tile")
    shift = 0.01 * np.diagonal(x.T @ x).mean()
    for steps in range(1, 6):
        mask = np.ones((1, 5), bool)
        mask[0, found.order[0, :steps]] = False
        pruned = sp.second_order_apply(w, x.T @ x, mask, pattern="tile")
        change = f64(pruned.w) - f64(w)
        error = output_error(x, w, pruned.w) + shift * np.sum(change**2)
        assert found.cost[0, :steps].sum() == pytest.approx(error, rel=1e-5)
    assert (found.cost > 0).all()
    assert (np.diff(found.price) >= 0).all()


def test_weights_of_dead_inputs_are_free() -> None:
    x, w = inputs(64), normal((32, 64))
    x[:, 16:32] = 0.0
    x[:, 40] = 0.0
    w[:, 16:32] *= 100.0
    found = sp.second_order_removals(w, x.T @ x, pattern="tile")
    assert_array_equal(found.order[:, 0], [1, 1])
    assert_array_equal(found.cost[:, 0], [0.0, 0.0])
    pruned = sp.second_order_prune(w, x.T @ x, pattern="tile", sparsity=0.25)
    assert_array_equal(pruned.mask, [[True, False, True, True]] * 2)
    assert pruned.cost == 0.0
    assert_array_equal(pruned.w[:, 32:], w[:, 32:])


def test_equal_inputs_carry_one_another() -> None:
    x = normal((200, 32)).repeat(2, axis=1)
    w = normal((16, 64), seed=1)
    pruned = sp.second_order_prune(w, x.T @ x, pattern="column", sparsity=0.5, damping=1e-7)
    assert pruned.cost < 1e-6 * output_error(x, w, np.zeros_like(w))
    assert_array_equal(pruned.mask.reshape(32, 2).sum(axis=1), np.ones(32))


# ---- arrays -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_storage_types(dtype: str) -> None:
    x, w = inputs(48), normal((32, 48), dtype=dtype)
    got = sp.second_order_prune(w, x.T @ x, pattern="tile", sparsity=0.5)
    exact = reference.second_order_prune(f64(w), x.T @ x, pattern="tile", sparsity=0.5)
    assert got.w.dtype == w.dtype
    assert_array_equal(got.mask, exact.mask)
    assert_array_equal(f64(got.w), f64(exact.w.astype(np.float32).astype(w.dtype)))
    assert got.cost == pytest.approx(output_error(x, w, got.w))


def test_a_gram_in_float32() -> None:
    x, w = inputs(48, rows=2000).astype(np.float32), normal((32, 48))
    gram = (x * 0.03).T @ (x * 0.03)
    got = sp.second_order_prune(w, gram, pattern="tile", sparsity=0.5)
    exact = reference.second_order_prune(w, gram, pattern="tile", sparsity=0.5)
    assert_array_equal(got.mask, exact.mask)
    assert_allclose(got.w, exact.w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", list(strided_copies(np.zeros((2, 2)))))
def test_strided(layout: str) -> None:
    x, w = inputs(50), normal((33, 50))
    gram = x.T @ x
    plain = sp.second_order_prune(w, gram, pattern="tile", sparsity=0.4)
    views = [strided_copies(a)[layout] for a in (w, gram)]
    got = sp.second_order_prune(*views, pattern="tile", sparsity=0.4)
    assert_array_equal(got.mask, plain.mask)
    assert_array_equal(got.w, plain.w)
    mask = strided_copies(plain.mask)[layout]
    assert_array_equal(sp.second_order_apply(*views, mask, pattern="tile").w, plain.w)


def test_nothing_is_written_around_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = inputs(33), normal((20, 33))
    memories = []

    def guarded_empty(like: Any, shape: tuple[int, ...], dtype: str | None = None) -> np.ndarray:
        array, memory = guarded(shape, np.dtype(dtype) if dtype else like.dtype)
        memories.append(memory)
        return array

    monkeypatch.setattr("spatile.ops.second_order.empty", guarded_empty)
    for pattern in ("tile", "tile:5x7", "row", "column"):
        sp.second_order_prune(w, x.T @ x, pattern=pattern, sparsity=0.5)
    assert len(memories) == 20
    for memory in memories:
        assert_guards_intact(memory)


def test_torch_in_torch_out() -> None:
    x, w = inputs(48).astype(np.float32), normal((32, 48))
    gram = x.T @ x
    expected = sp.second_order_prune(w, gram, pattern="tile", sparsity=0.5)
    tensors = to_torch(w), to_torch(gram)
    got = sp.second_order_prune(*tensors, pattern="tile", sparsity=0.5)
    assert isinstance(got.w, torch.Tensor)
    assert got.mask.dtype == torch.bool
    assert_array_equal(got.w.numpy(), expected.w)
    assert_array_equal(got.mask.numpy(), expected.mask)
    found = sp.second_order_removals(*tensors, pattern="tile")
    assert isinstance(found.order, torch.Tensor)
    assert isinstance(sp.second_order_mask(found, sparsity=0.5), torch.Tensor)
    half = sp.second_order_prune(tensors[0].bfloat16(), tensors[1], pattern="tile", sparsity=0.5)
    assert half.w.dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(0, 16), (16, 0), (0, 0)], ids=str)
def test_matrices_without_groups(shape: tuple[int, int]) -> None:
    w, gram = np.zeros(shape, np.float32), np.eye(shape[1])
    pruned = sp.second_order_prune(w, gram, pattern="tile", sparsity=0.5)
    assert pruned.w.shape == shape
    assert pruned.mask.shape == sp.as_pattern("tile").mask_shape(shape)
    assert pruned.cost == 0.0


@pytest.mark.parametrize("pattern", ["tile", "column"])
def test_any_number_of_threads_gives_the_same_bits(pattern: str) -> None:
    x, w = inputs(150), normal((100, 150))
    before, results = sp.num_threads(), []
    try:
        for threads in (1, 2, 5):
            sp.set_num_threads(threads)
            found = sp.second_order_removals(w, x.T @ x, pattern=pattern)
            results.append(
                (*found, *sp.second_order_prune(w, x.T @ x, pattern=pattern, sparsity=0.5))
            )
    finally:
        sp.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_array_equal(a, b)


# ---- bad input ----------------------------------------------------------------------------------

W, GRAM = normal((20, 33)), np.eye(33)
MASK = np.ones((2, 3), bool)


def spoilt(x: np.ndarray, at: tuple[int, int], value: float) -> np.ndarray:
    copy = x.copy()
    copy[at] = value
    return copy


REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: prune(W.astype(np.float64)), TypeError, "w.dtype is float64"),
    (lambda: prune(W[0]), ValueError, "w has 1 dimensions, expected 2"),
    (lambda: prune("text"), TypeError, "w is a str"),
    (lambda: prune(spoilt(W, (17, 3), np.nan)), ValueError, r"w holds NaN .* group \(1, 0\)"),
    (lambda: prune(spoilt(W, (0, 32), np.inf)), ValueError, r"w holds NaN .* group \(0, 2\)"),
    (lambda: prune(gram=GRAM[:32]), ValueError, r"gram.shape\[0\] is 32, expected 33"),
    (lambda: prune(gram=GRAM[:, :5]), ValueError, r"gram.shape\[1\] is 5, expected 33"),
    (lambda: prune(gram=GRAM[0]), ValueError, "gram has 1 dimensions"),
    (lambda: prune(gram=GRAM.astype(np.float16)), TypeError, "gram.dtype is float16, expected"),
    (lambda: prune(gram=GRAM.astype(int)), TypeError, "gram.dtype is int64, expected float32"),
    (lambda: prune(gram=None), TypeError, "gram is a NoneType"),
    (lambda: prune(gram=spoilt(GRAM, (3, 4), 0.1)), ValueError, r"gram\[3, 4\] is 0.1 and"),
    (lambda: prune(gram=spoilt(GRAM, (4, 3), np.nan)), ValueError, r"gram\[3, 4\] .* symmetric"),
    (lambda: prune(gram=spoilt(GRAM, (4, 4), np.inf)), ValueError, r"gram\[4, 4\] is inf"),
    (lambda: prune(gram=spoilt(GRAM, (4, 4), -1.0)), ValueError, r"gram\[4, 4\] is -1"),
    (lambda: prune(gram=0 * GRAM), ValueError, "the diagonal of gram has the mean 0"),
    (lambda: prune(gram=3 - 2 * GRAM), ValueError, "gram with damping 0.01 is not positive"),
    (lambda: prune(damping=0.0), ValueError, "damping is 0, expected"),
    (lambda: prune(damping=-1.0), ValueError, "damping is -1, expected"),
    (lambda: prune(damping=float("nan")), ValueError, "damping is -?nan, expected"),
    (lambda: prune(damping=float("inf")), ValueError, "damping is inf, expected"),
    (lambda: prune(damping="much"), TypeError, "damping is a str, expected a number"),
    (lambda: prune(sparsity=1.0), ValueError, "sparsity is 1.0, expected"),
    (lambda: prune(sparsity=-0.1), ValueError, "sparsity is -0.1, expected"),
    (lambda: prune(sparsity=float("nan")), ValueError, "sparsity is nan, expected"),
    (lambda: prune(sparsity="half"), TypeError, "sparsity is a str, expected a number"),
    (lambda: prune(scope="row-balanced"), ValueError, "scope is 'row-balanced', expected"),
    (lambda: prune(pattern=["tile"]), TypeError, "pattern is a list, expected one"),
    (lambda: prune([W, W], [GRAM]), ValueError, "gram has 1 entries, expected 2"),
    (lambda: prune([W, W], GRAM), TypeError, "gram is a ndarray, expected a list"),
    (lambda: prune([W], [GRAM], pattern=["tile"] * 2), ValueError, "pattern has 2 entries"),
    (lambda: prune([W, W[0]], [GRAM] * 2), ValueError, r"w\[1\] has 1 dimensions"),
    (lambda: prune([W, W], [GRAM, -GRAM]), ValueError, r"gram\[1\]\[0, 0\] is -1"),
    (lambda: prune(torch.ones(20, 33, requires_grad=True)), ValueError, "w requires grad"),
]


def prune(w: Any = W, gram: Any = GRAM, **options: Any) -> Any:
    return sp.second_order_prune(w, gram, **{"pattern": "tile", "sparsity": 0.5, **options})


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case[2])
def test_bad_input_is_refused_by_name(
    case: tuple[Callable[[], Any], type[Exception], str],
) -> None:
    call, error, message = case
    with pytest.raises(error, match=f"^second_order_prune: {message}"):
        call()


def test_bad_input_of_the_parts() -> None:
    with pytest.raises(ValueError, match=r"^second_order_removals: damping is 0"):
        sp.second_order_removals(W, GRAM, pattern="tile", damping=0)
    with pytest.raises(ValueError, match=r"^second_order_apply: mask.shape\[1\] is 2, expected 3"):
        sp.second_order_apply(W, GRAM, MASK[:, :2], pattern="tile")
    with pytest.raises(TypeError, match=r"^second_order_apply: mask.dtype is int64, expected bool"):
        sp.second_order_apply(W, GRAM, MASK.astype(int), pattern="tile")
    for wrong, words in (
        (np.ones(3), r"row_weight\.shape is \(3,\), expected \("),
        (np.full(len(W), -1.0), "row_weight holds -1"),
        (np.full(len(W), np.nan), "row_weight holds nan"),
    ):
        with pytest.raises(ValueError, match=f"^second_order_removals: {words}"):
            sp.second_order_removals(W, GRAM, pattern="tile", row_weight=wrong)
    with pytest.raises(TypeError, match=r"^second_order_removals: w\.dtype is float64"):
        sp.second_order_removals(
            W.astype(np.float64), GRAM, pattern="tile", row_weight=np.ones(len(W))
        )
    with pytest.raises(TypeError, match=r"^second_order_mask: removals\[0\] is a ndarray"):
        sp.second_order_mask([W], sparsity=0.5)
    with pytest.raises(ValueError, match=r"^second_order_mask: scope is 'row'"):
        sp.second_order_mask(
            sp.second_order_removals(W, GRAM, pattern="tile"), sparsity=0.5, scope="row"
        )
