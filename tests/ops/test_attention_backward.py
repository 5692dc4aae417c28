"""sp.attention_backward against its definition."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import spatile as sp
from spatile import reference

from .arrays import DTYPES, assert_accurate, f64, normal, strided_copies, to_torch
from .cases import OPTIONS, SHAPES, operands, option_case, option_grads, shape_grads

pytestmark = pytest.mark.usefixtures("cpu_tier")


def assert_grads(got: Any, exact: Any, plain: Any, dtype: str) -> None:
    for name in ("q", "k", "v"):
        assert getattr(got, name).dtype == DTYPES[dtype]
        assert_accurate(getattr(got, name), getattr(plain, name), getattr(exact, name), dtype)
    if exact.bias is None:
        assert got.bias is None
    else:
        assert_accurate(got.bias, plain.bias, exact.bias, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_over_shapes(shape: tuple[int, ...], dtype: str) -> None:
    q, k, v, grad = operands(shape, dtype)
    forward = sp.attention(q, k, v, return_lse=True)
    got = sp.attention_backward(grad, q, k, v, forward.out, forward.lse)
    assert_grads(got, *shape_grads(shape, dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_values_over_options(name: str, dtype: str) -> None:
    (q, k, v, grad), options = option_case(name, dtype)
    forward = sp.attention(q, k, v, **options, return_lse=True)
    got = sp.attention_backward(
        grad, q, k, v, forward.out, forward.lse, **options, need_bias="bias" in options
    )
    assert_grads(got, *option_grads(name, dtype), dtype)


@pytest.mark.parametrize("bias_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 2, 9, 12), (2, 1, 1, 12)], ids=str)
def test_a_bias_gradient_is_of_the_biass_dtype(
    shape: tuple[int, ...], dtype: str, bias_dtype: str
) -> None:
    """Not of q's: scores are float32, so a mask made for those of a model in 16 bits often is."""
    q, k, v, grad = operands((2, 9, 12, 2, 1, 16, 16), dtype)
    options = {"bias": normal(shape, seed=5, dtype=bias_dtype)}
    forward = sp.attention(q, k, v, **options, return_lse=True)
    got = sp.attention_backward(
        grad, q, k, v, forward.out, forward.lse, **options, need_bias=True
    ).bias
    assert got.dtype == DTYPES[bias_dtype]
    exact = reference.attention_backward(
        *(f64(x) for x in (grad, q, k, v)), None, None, bias=f64(options["bias"]), need_bias=True
    ).bias
    tolerance = max(float(ml_dtypes.finfo(DTYPES[d]).eps) for d in (dtype, bias_dtype))
    assert_allclose(f64(got), exact, atol=8 * tolerance * np.abs(exact).max())


def test_bias_gradient_only_when_asked_for() -> None:
    (q, k, v, grad), options = option_case("bias", "float32")
    forward = sp.attention(q, k, v, **options, return_lse=True)
    got = sp.attention_backward(grad, q, k, v, forward.out, forward.lse, **options)
    assert got.bias is None


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"lengths": [33, 8]}], ids=str)
def test_dropout(options: dict[str, Any]) -> None:
    q, k, v, grad = operands((2, 33, 33, 4, 2, 16, 16), "float32")
    options = {**options, "dropout": 0.3, "seed": 17}
    forward = sp.attention(q, k, v, **options, return_lse=True)
    got = sp.attention_backward(grad, q, k, v, forward.out, forward.lse, **options)
    exact = reference.attention_backward(grad, q, k, v, None, None, **options)
    for ours, theirs in zip((got.q, got.k, got.v), exact[:3], strict=True):
        assert_allclose(ours, theirs, atol=2e-5)


def test_rows_past_the_length_get_and_give_no_gradient() -> None:
    q, k, v, grad = operands((2, 20, 20, 2, 2, 16, 16), "float32")
    lengths = np.array([20, 6])
    forward = sp.attention(q, k, v, lengths=lengths, return_lse=True)
    got = sp.attention_backward(grad, q, k, v, forward.out, forward.lse, lengths=lengths)
    assert not any(x[1, 6:].any() for x in (got.q, got.k, got.v))
    grad[1, 6:] = 1e30
    again = sp.attention_backward(grad, q, k, v, forward.out, forward.lse, lengths=lengths)
    for a, b in zip((got.q, got.k, got.v), (again.q, again.k, again.v), strict=True):
        assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "layout", ["every other", "column-major", "reversed", "part of a larger array"]
)
def test_strided_inputs(layout: str, dtype: str) -> None:
    q, k, v, grad = operands((2, 18, 21, 4, 2, 16, 16), dtype)
    forward = sp.attention(q, k, v, causal=True, return_lse=True)
    arrays = (grad, q, k, v, forward.out, forward.lse)
    expected = sp.attention_backward(*arrays, causal=True)
    got = sp.attention_backward(*(strided_copies(x)[layout] for x in arrays), causal=True)
    for a, b in zip((got.q, got.k, got.v), (expected.q, expected.k, expected.v), strict=True):
        assert_array_equal(f64(a), f64(b))


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_in_torch_out(dtype: str) -> None:
    q, k, v, grad = operands((2, 18, 18, 4, 2, 16, 16), dtype)
    forward = sp.attention(q, k, v, return_lse=True)
    arrays = (grad, q, k, v, forward.out, forward.lse)
    expected = sp.attention_backward(*arrays)
    got = sp.attention_backward(*(to_torch(x) for x in arrays))
    for a, b in zip((got.q, got.k, got.v), (expected.q, expected.k, expected.v), strict=True):
        assert isinstance(a, torch.Tensor)
        assert_array_equal(f64(a), f64(b))


def test_the_gradient_predicts_a_small_step() -> None:
    """Not by formula: the forward op itself, a step apart."""
    q, k, v, grad = operands((1, 12, 12, 2, 1, 8, 8), "float32")
    forward = sp.attention(q, k, v, causal=True, return_lse=True)
    got = sp.attention_backward(grad, q, k, v, forward.out, forward.lse, causal=True)
    for position, (x, gradient) in enumerate(((q, got.q), (k, got.k), (v, got.v))):
        step = np.sign(gradient) * np.float32(1e-3)
        losses = []
        for sign in (1, -1):
            moved = [q, k, v]
            moved[position] = x + sign * step
            losses.append(float((f64(sp.attention(*moved, causal=True)) * grad).sum()))
        assert_allclose(losses[0] - losses[1], 2e-3 * np.abs(gradient).sum(), rtol=2e-2)
