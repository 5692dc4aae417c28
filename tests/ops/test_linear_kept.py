"""Products with a dense weight of which only what a structure keeps counts: what training runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import spatile as sp
from spatile import _core, reference

from .arrays import DTYPES, assert_guards_intact, f64, guarded, normal

pytestmark = pytest.mark.usefixtures("cpu_tier")

PATTERNS = ["tile", "tile:16x24", "tile:32x3", "row", "column", "head:16"]
SHAPES = [(1, 16, 16), (40, 50, 70), (200, 96, 33), (17, 7, 130), (9, 700, 40), (270, 40, 24)]
"""Rows, in, out."""


def kept_weight(
    shape: tuple[int, int], pattern: str, dtype: str = "float32"
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], sp.SparseMatrix]:
    """A weight that is zero where stored columns hold pruned groups, its mask, its structure."""
    w = normal(shape, seed=2, dtype=dtype)
    keep = np.random.default_rng(7).random(sp.as_pattern(pattern).mask_shape(shape)) < 0.4
    keep.flat[0] = True
    structure = sp.pack(np.zeros(shape, np.float32), keep, pattern=pattern)
    mask = sp.expand_mask(keep, shape, pattern=pattern)
    if structure.index["kept"] is not None:
        w = np.where(mask, w, np.zeros_like(w))
    return w, mask, structure


def backward(
    grad: np.ndarray[Any, Any], x: np.ndarray[Any, Any], w: np.ndarray[Any, Any], structure: Any
) -> tuple[Any, ...]:
    dx, (dw, memory) = np.full_like(x, np.nan), guarded(w.shape, w.dtype)
    db = np.full(w.shape[0], np.nan, np.float32)
    _core.linear_backward(grad, x, (w, structure._capsule), dx, dw, db, False)
    assert_guards_intact(memory)
    return dx, dw, db


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape: tuple[int, int, int], pattern: str, dtype: str) -> None:
    n, width, out = shape
    w, mask, structure = kept_weight((out, width), pattern, dtype)
    x, grad = normal((n, width), seed=1, dtype=dtype), normal((n, out), seed=3, dtype=dtype)
    y = np.empty((n, out), np.float32 if dtype == "float32" else DTYPES[dtype])
    _core.linear(x, (w, structure._capsule), y, None, None, 0, False)
    masked = np.where(mask, f64(w), 0.0)
    tolerance = {"float32": 2e-5, "float16": 2e-2, "bfloat16": 1e-1}[dtype]
    assert_allclose(f64(y), f64(x) @ masked.T, rtol=tolerance, atol=tolerance * width**0.5)
    exact = reference.linear_backward(f64(grad), f64(x), masked)
    dx, dw, db = backward(grad, x, w, structure)
    assert_allclose(f64(dx), exact.x, rtol=tolerance, atol=tolerance * out**0.5)
    wanted = np.where(mask, exact.w, 0.0)
    if structure.index["kept"] is not None:
        dw = np.where(mask, dw, np.zeros_like(dw))
    assert_allclose(f64(dw), wanted, rtol=tolerance, atol=tolerance * n**0.5)
    assert_allclose(db, exact.bias, rtol=2e-5, atol=1e-4 * n**0.5)


def test_what_is_not_stored_is_never_read() -> None:
    w, mask, structure = kept_weight((64, 64), "tile")
    poisoned = np.where(mask, w, np.float32(np.nan))
    x, grad = normal((20, 64), seed=1), normal((20, 64), seed=3)
    y = np.empty((20, 64), np.float32)
    _core.linear(x, (poisoned, structure._capsule), y, None, None, 0, False)
    assert np.isfinite(y).all()
    for found, wanted in zip(
        backward(grad, x, poisoned, structure), backward(grad, x, w, structure), strict=True
    ):
        assert_array_equal(found, wanted)


def test_transposed_and_strided_weights() -> None:
    w, _, structure = kept_weight((48, 80), "tile")
    x, grad = normal((20, 80), seed=1), normal((20, 48), seed=3)
    expected = backward(grad, x, w, structure)
    columns = np.asfortranarray(w)
    dx, dw, db = np.empty_like(x), np.empty_like(columns), np.empty(48, np.float32)
    _core.linear_backward(grad, x, (columns, structure._capsule), dx, dw, db, False)
    for found, wanted in zip((dx, dw, db), expected, strict=True):
        assert_allclose(found, wanted, rtol=1e-6)
    dw = np.full((96, 160), 7, np.float32)[::2, ::2]
    _core.linear_backward(grad, x, (w, structure._capsule), None, dw, None, False)
    assert_array_equal(dw, expected[1])
    assert (dw.base[1::2] == 7).all()


def test_the_same_whatever_the_threads_and_the_split_of_tokens() -> None:
    w, _, structure = kept_weight((160, 96), "tile")
    x, grad = normal((700, 96), seed=1), normal((700, 160), seed=3)
    before = sp.num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            sp.set_num_threads(threads)
            results.append(backward(grad, x, w, structure))
    finally:
        sp.set_num_threads(before)
    for other in results[1:]:
        for found, wanted in zip(other, results[0], strict=True):
            assert_array_equal(found, wanted)


@pytest.mark.parametrize("need", ["x", "w", "bias"])
def test_one_gradient_alone(need: str) -> None:
    w, _, structure = kept_weight((40, 50), "tile")
    x, grad = normal((30, 50), seed=1), normal((30, 40), seed=3)
    dx, dw, db = backward(grad, x, w, structure)
    wanted = {"x": dx, "w": dw, "bias": db}
    outs = {k: np.full_like(v, np.nan) if k == need else None for k, v in wanted.items()}
    _core.linear_backward(grad, x, (w, structure._capsule), *outs.values(), False)
    assert_allclose(outs[need], wanted[need], rtol=1e-5, atol=1e-5)


def test_no_rows_give_gradients_of_zero() -> None:
    w, _, structure = kept_weight((40, 50), "tile")
    empty_x, empty_grad = np.empty((0, 50), np.float32), np.empty((0, 40), np.float32)
    dx, dw, db = backward(empty_grad, empty_x, w, structure)
    assert dx.shape == (0, 50)
    assert (dw == 0).all()
    assert (db == 0).all()


def test_a_weight_of_another_shape_is_refused() -> None:
    _, _, structure = kept_weight((40, 50), "tile")
    x, y = normal((3, 50)), np.empty((3, 40), np.float32)
    for shape, message in (
        ((41, 50), r"w\.shape\[0\] is 41, expected 40"),
        ((40, 49), r"w\.shape"),
    ):
        with pytest.raises(ValueError, match=f"linear: {message}"):
            _core.linear(x, (normal(shape), structure._capsule), y, None, None, 0, False)


@pytest.mark.parametrize("starts", [[0, 8], [16, 0]], ids=["overlapping", "out of order"])
def test_runs_of_a_strip_are_apart_and_in_order(starts: list[int]) -> None:
    index = {
        "run_ptr": np.array([0, 2]),
        "value_ptr": np.array([0, 32]),
        "run_start": np.array(starts, np.int32),
        "run_len": np.array([16, 16], np.int32),
        "rows": None,
        "kept": None,
    }
    with pytest.raises(ValueError, match="runs of a strip overlap or are out of order"):
        sp.SparseMatrix((16, 32), sp.Tile(), 512, np.zeros((32, 16), np.float32), index)


@pytest.mark.parametrize(
    ("row", "message"),
    [(3, "a row is in two places"), (-1, "a row is in no strip"), (16, "a row lies outside")],
)
def test_every_row_is_in_one_strip(row: int, message: str) -> None:
    """Results are written row by row: one that is lacking would hold what memory held before."""
    whole = sp.pack(np.ones((16, 16), np.float32))
    rows = np.arange(16, dtype=np.int32)
    rows[5] = row
    with pytest.raises(ValueError, match=message):
        sp.SparseMatrix(
            whole.shape, whole.pattern, whole.nnz, whole.values, {**whole.index, "rows": rows}
        )
