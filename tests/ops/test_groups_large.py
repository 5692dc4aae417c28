"""Groups that are taller or wider than what the ops hold at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import spatile as sp
from spatile import reference
from spatile.patterns import as_pattern

from .arrays import f64, normal

pytestmark = pytest.mark.usefixtures("cpu_tier")

# (shape, pattern): whole columns, tall and wide tiles, rows of many pieces, edges that overhang
CASES: list[tuple[tuple[int, int], str]] = [
    ((1500, 600), "column"),
    ((900, 1100), "head:64:in"),
    ((700, 1300), "tile:600x700"),
    ((1100, 40), "tile:1090x3"),
    ((3, 9001), "row"),
    ((20, 3001), "tile"),
    ((9001, 3), "tile:100x2"),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("shape", "pattern"), CASES, ids=str)
def test_values(shape: tuple[int, int], pattern: str, transposed: bool, dtype: str) -> None:
    w = normal(shape, dtype=dtype)
    if transposed:
        w = np.asfortranarray(w)
    beta = np.random.default_rng(4).random(as_pattern(pattern).mask_shape(shape)).astype(np.float32)
    norms = reference.group_norms(w, pattern=pattern)
    assert_allclose(sp.group_norms(w, pattern=pattern), norms, rtol=2e-6)
    penalty = sp.group_lasso(w, pattern=pattern, beta=beta)
    assert penalty == pytest.approx(reference.group_lasso(w, pattern=pattern, beta=beta), rel=1e-6)
    tolerance = 2e-6 if dtype == "float32" else 1e-2
    options: dict[str, Any] = {"pattern": pattern, "beta": beta, "strength": float(norms.mean())}
    exact = reference.group_lasso_grad(f64(w), **options)
    assert_allclose(f64(sp.group_lasso_grad(w, **options)), exact, rtol=tolerance, atol=1e-7)
    expected = reference.group_shrink_(f64(w), **options)
    shrunk = sp.group_shrink_(w.copy(order="K"), **options)
    assert_allclose(f64(shrunk), expected, rtol=4 * tolerance, atol=tolerance)


@pytest.mark.parametrize(("shape", "pattern"), CASES, ids=str)
def test_threads_change_no_bit(shape: tuple[int, int], pattern: str) -> None:
    w = normal(shape)
    before = sp.num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            sp.set_num_threads(threads)
            results.append(
                [
                    sp.group_norms(w, pattern=pattern),
                    sp.group_lasso(w, pattern=pattern),
                    sp.group_shrink_(w.copy(), pattern=pattern, strength=0.5),
                ]
            )
    finally:
        sp.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_array_equal(a, b)


@pytest.mark.parametrize("pattern", ["tile", "row", "column"])
@pytest.mark.parametrize("offset", [0, 5])
def test_a_gradient_that_is_written_around_the_caches(pattern: str, offset: int) -> None:
    """Large enough for it; the array may begin anywhere, and its rows end anywhere."""
    memory = np.empty(1400 * 1531 + offset, np.float32)
    w = memory[offset:].reshape(1400, 1531)
    w[...] = normal(w.shape)
    grad = sp.group_lasso_grad(w, pattern=pattern, strength=0.5)
    assert_allclose(
        grad, reference.group_lasso_grad(w, pattern=pattern, strength=0.5), rtol=2e-6, atol=1e-9
    )


def test_a_gradient_lies_in_memory_as_its_weights() -> None:
    """A Conv1D weight arrives as a transposed view, and so does its gradient."""
    w = normal((64, 48)).T
    grad = sp.group_lasso_grad(w, pattern="tile", strength=1.0)
    assert grad.strides == w.strides


@pytest.mark.parametrize("n", [4095, 4096, 100_000])
def test_selection_on_either_side_of_its_change_of_digits(n: int) -> None:
    w = np.round(normal((1, n)) * 50) / 50  # many ties
    got = sp.prune_mask(w, pattern="element", sparsity=0.5)
    assert_array_equal(got, reference.prune_mask(w, pattern="element", sparsity=0.5))
    assert_array_equal(sp.topk(w[0], n // 3).indices, reference.topk(w[0], n // 3).indices)
