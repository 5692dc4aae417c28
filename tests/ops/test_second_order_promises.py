"""What sp.second_order_prune promises: less error than by norm, what stays pruned, what is free."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import spatile as sp

from .arrays import f64, normal
from .layer_inputs import inputs, output_error

pytestmark = pytest.mark.usefixtures("cpu_tier")


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
