"""sp.second_order_prune on all kinds of arrays: dtypes, strides, torch, none, and any threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import spatile as sp
from spatile import reference

from .arrays import DTYPES, assert_guards_intact, f64, guarded, normal, strided_copies, to_torch
from .layer_inputs import inputs, output_error

pytestmark = pytest.mark.usefixtures("cpu_tier")


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
