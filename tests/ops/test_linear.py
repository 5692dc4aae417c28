"""sp.linear and sp.linear_backward on dense weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import spatile as sp
from spatile import reference

from . import plain
from .arrays import (
    DTYPES,
    assert_accurate,
    assert_guards_intact,
    f64,
    guarded,
    normal,
    strided_copies,
    to_torch,
)

pytestmark = pytest.mark.usefixtures("cpu_tier")

# (rows of x, in, out)
SHAPES = [
    (1, 1, 1),
    (1, 15, 16),
    (16, 16, 16),
    (17, 33, 15),
    (15, 17, 33),
    (33, 64, 100),
    (64, 100, 64),
    (100, 320, 17),
    (320, 64, 80),
    (5, 500, 320),
    (500, 128, 128),
    (7, 3072, 48),
]
ACTIVATIONS = [None, "gelu", "gelu_tanh", "relu", "tanh"]


@cache
def operands(shape: tuple[int, int, int], dtype: str) -> dict[str, np.ndarray]:
    n, width, out = shape
    return {
        "x": normal((n, width), seed=1, dtype=dtype),
        "w": normal((out, width), seed=2, dtype=dtype, scale=width**-0.5),
        "bias": normal((out,), seed=3, dtype=dtype),
        "residual": normal((n, out), seed=4, dtype=dtype),
        "grad": normal((n, out), seed=5, dtype=dtype),
    }


@cache
def truth(shape: tuple[int, int, int], dtype: str, activation: str | None, full: bool) -> Any:
    a = operands(shape, dtype)
    extra = {"bias": a["bias"], "residual": a["residual"]} if full else {}
    wide = {name: f64(x) for name, x in extra.items()}
    exact = reference.linear(f64(a["x"]), f64(a["w"]), activation=activation, **wide)
    return exact, plain.linear(a["x"], a["w"], activation=activation, **extra)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_over_shapes(shape: tuple[int, int, int], dtype: str) -> None:
    a = operands(shape, dtype)
    got = sp.linear(a["x"], a["w"])
    assert got.dtype == DTYPES[dtype]
    exact, same_type = truth(shape, dtype, None, False)
    assert_accurate(got, same_type, exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(17, 33, 15), (33, 64, 100)], ids=str)
def test_epilogues(shape: tuple[int, int, int], activation: str | None, dtype: str) -> None:
    a = operands(shape, dtype)
    got = sp.linear(a["x"], a["w"], bias=a["bias"], activation=activation, residual=a["residual"])
    exact, same_type = truth(shape, dtype, activation, True)
    assert_accurate(got, same_type, exact, dtype)


@pytest.mark.parametrize("extra", ["bias", "residual"])
def test_bias_and_residual_alone(extra: str) -> None:
    a = operands((17, 33, 15), "float32")
    got = sp.linear(a["x"], a["w"], **{extra: a[extra]})
    assert_allclose(got, reference.linear(a["x"], a["w"], **{extra: a[extra]}), atol=1e-5)


@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (2, 1, 3, 2), (0,), (3, 0)])
def test_leading_axes_pass_through(leading: tuple[int, ...]) -> None:
    x, w = normal((*leading, 20), seed=1), normal((7, 20), seed=2)
    residual = normal((*leading, 7), seed=3)
    got = sp.linear(x, w, residual=residual)
    assert got.shape == (*leading, 7)
    assert_allclose(got, reference.linear(x, w, residual=residual), atol=2e-6)


def test_no_inputs_leaves_the_bias() -> None:
    bias = normal((5,))
    got = sp.linear(np.zeros((3, 0), np.float32), np.zeros((5, 0), np.float32), bias=bias)
    assert_array_equal(got, np.broadcast_to(bias, (3, 5)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "layout", ["every other", "column-major", "reversed", "part of a larger array"]
)
def test_strided_inputs(layout: str, dtype: str) -> None:
    a = operands((17, 33, 15), dtype)
    expected = sp.linear(a["x"], a["w"], bias=a["bias"], residual=a["residual"])
    s = {name: strided_copies(x)[layout] for name, x in a.items()}
    got = sp.linear(s["x"], s["w"], bias=s["bias"], residual=s["residual"])
    assert_accurate(got, expected, f64(expected), dtype)


def test_a_transposed_weight_as_conv1d_holds_it() -> None:
    x, w = normal((9, 20), seed=1), normal((20, 33), seed=2)
    assert_allclose(sp.linear(x, w.T), f64(x) @ f64(w), atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (17, 33, 15), (33, 64, 100)], ids=str)
def test_out_is_filled_and_nothing_around_it(shape: tuple[int, int, int], dtype: str) -> None:
    a = operands(shape, dtype)
    expected = sp.linear(a["x"], a["w"], bias=a["bias"])
    out, memory = guarded(expected.shape, DTYPES[dtype])
    assert sp.linear(a["x"], a["w"], bias=a["bias"], out=out) is out
    assert_array_equal(f64(out), f64(expected))
    assert_guards_intact(memory)


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_in_torch_out(dtype: str) -> None:
    a = operands((17, 33, 15), dtype)
    t = {name: to_torch(x) for name, x in a.items()}
    got = sp.linear(t["x"], t["w"], bias=t["bias"], activation="gelu")
    assert isinstance(got, torch.Tensor)
    assert got.dtype == t["x"].dtype
    assert_array_equal(f64(got), f64(sp.linear(a["x"], a["w"], bias=a["bias"], activation="gelu")))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_stored_smaller_than_activations(dtype: str) -> None:
    a = operands((33, 64, 100), "float32")
    w = a["w"].astype(DTYPES[dtype])
    got = sp.linear(a["x"], w, bias=a["bias"])
    assert got.dtype == np.float32
    assert_allclose(got, reference.linear(a["x"], f64(w), bias=a["bias"]), atol=1e-5)


def test_products_are_float32_unless_told() -> None:
    a = operands((33, 64, 100), "float32")
    full = sp.linear(a["x"], a["w"], compute="float32")
    assert_array_equal(full, sp.linear(a["x"], a["w"]))
    assert not np.array_equal(full, sp.linear(a["x"], a["w"], compute="bfloat16"))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("pattern", ["tile", "row", "column", None])
def test_a_token_is_the_same_among_any_others(
    pattern: str | None, full: bool, cpu_tier: str
) -> None:
    """Kernels differ by how many tokens the last sixteen hold; on the CPU the bits may not."""
    rtol, atol = (1e-5, 1e-5) if cpu_tier.startswith("cuda") else (0.0, 0.0)
    x, w = normal((40, 97), seed=1), normal((75, 97), seed=2)
    bias, residual = normal((75,), seed=3), normal((40, 75), seed=4)
    mask = None if pattern is None else sp.prune_mask(w, pattern=pattern, sparsity=0.5)
    packed = sp.pack(w, mask, pattern=pattern or "tile")

    def run(rows: slice) -> np.ndarray:
        if not full:
            return sp.linear(x[rows], packed)
        return sp.linear(x[rows], packed, bias=bias, residual=residual[rows], activation="gelu")

    among_all = run(slice(None))
    exact = reference.linear(
        f64(x),
        f64(packed.to_dense()),
        activation="gelu" if full else None,
        **({"bias": f64(bias), "residual": f64(residual)} if full else {}),
    )
    assert_allclose(among_all, exact, rtol=1e-5, atol=2e-5)
    for n in range(1, 34):
        assert_allclose(run(slice(0, n)), among_all[:n], rtol, atol)
        assert_allclose(run(slice(40 - n, 40)), among_all[40 - n :], rtol, atol)


def test_nan_and_infinity_stay_in_their_rows() -> None:
    a = operands((17, 33, 15), "float32")
    x = a["x"].copy()
    x[3, 5], x[8, 0] = np.nan, np.inf
    got = sp.linear(x, a["w"])
    assert np.isnan(got[3]).all()
    assert np.isinf(got[8]).all()
    rest = np.delete(got, [3, 8], axis=0)
    assert_allclose(rest, np.delete(reference.linear(a["x"], a["w"]), [3, 8], axis=0), atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "tanh"])
def test_activations_of_extreme_values(activation: str) -> None:
    x = np.array([[-1e30], [-20.0], [-0.0], [20.0], [1e30], [np.inf], [np.nan]], np.float32)
    got = sp.linear(x, np.ones((1, 1), np.float32), activation=activation)[:, 0]
    top = [1.0] * 3 if activation == "tanh" else [20.0, 1e30, np.inf]
    low = [-1.0] * 2 if activation == "tanh" else [0.0] * 2
    assert_allclose(got, [*low, 0.0, *top, np.nan], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward_values(shape: tuple[int, int, int], dtype: str) -> None:
    a = operands(shape, dtype)
    got = sp.linear_backward(a["grad"], a["x"], a["w"])
    exact = reference.linear_backward(f64(a["grad"]), f64(a["x"]), f64(a["w"]))
    grad, x, w = (to_torch(a[name]) for name in ("grad", "x", "w"))
    for name, same_type in (
        ("x", plain.product(grad, w)),
        ("w", plain.product(grad.T, x)),
        ("bias", plain.product(torch.ones_like(grad[:, :1]).T, grad)[0]),
    ):
        assert_accurate(getattr(got, name), same_type, getattr(exact, name), dtype)


@pytest.mark.parametrize("need", [("x",), ("w",), ("bias",), ("w", "x"), ()])
def test_backward_gives_what_is_needed(need: tuple[str, ...]) -> None:
    a = operands((17, 33, 15), "float32")
    got = sp.linear_backward(a["grad"], a["x"], a["w"], need=need)
    exact = reference.linear_backward(a["grad"], a["x"], a["w"])
    for name in ("x", "w", "bias"):
        if name in need:
            assert_allclose(getattr(got, name), getattr(exact, name), atol=2e-5)
        else:
            assert getattr(got, name) is None


@pytest.mark.parametrize("leading", [(), (2, 3), (0,)])
def test_backward_sums_over_leading_axes(leading: tuple[int, ...]) -> None:
    grad, x, w = (
        normal((*leading, 7), seed=1),
        normal((*leading, 20), seed=2),
        normal((7, 20), seed=3),
    )
    got = sp.linear_backward(grad, x, w)
    exact = reference.linear_backward(grad, x, w)
    assert got.x.shape == x.shape
    assert got.w.shape == w.shape
    assert got.bias.shape == (7,)
    for name in ("x", "w", "bias"):
        assert_allclose(getattr(got, name), getattr(exact, name), atol=1e-5)


@pytest.mark.parametrize(
    "layout", ["every other", "column-major", "reversed", "part of a larger array"]
)
def test_backward_strided_and_torch(layout: str) -> None:
    a = operands((17, 33, 15), "float32")
    exact = reference.linear_backward(a["grad"], a["x"], a["w"])
    strided = sp.linear_backward(*(strided_copies(a[n])[layout] for n in ("grad", "x", "w")))
    tensors = sp.linear_backward(*(to_torch(a[n]) for n in ("grad", "x", "w")))
    for name in ("x", "w", "bias"):
        assert_allclose(getattr(strided, name), getattr(exact, name), atol=2e-5)
        assert isinstance(getattr(tensors, name), torch.Tensor)
        assert_allclose(getattr(tensors, name).numpy(), getattr(exact, name), atol=2e-5)
