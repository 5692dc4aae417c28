"""The attention calls that forward and backward tests share."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from spatile import reference

from . import plain
from .arrays import f64, normal

# (b, sq, sk, h, hk, d, dv)
SHAPES: list[tuple[int, int, int, int, int, int, int]] = [
    (1, 1, 1, 1, 1, 8, 8),
    (3, 1, 1, 2, 2, 64, 64),
    (1, 15, 15, 2, 2, 16, 16),
    (3, 16, 16, 2, 1, 32, 32),
    (1, 17, 17, 3, 3, 64, 64),
    (3, 33, 33, 4, 2, 8, 8),
    (1, 33, 33, 2, 2, 80, 80),
    (3, 64, 64, 2, 2, 64, 64),
    (1, 64, 64, 4, 1, 128, 128),
    (3, 100, 100, 2, 2, 32, 32),
    (1, 100, 100, 2, 1, 80, 80),
    (1, 320, 320, 2, 2, 64, 64),
    (1, 320, 320, 1, 1, 16, 16),
    (1, 500, 500, 2, 1, 64, 64),
    (1, 500, 500, 1, 1, 128, 128),
    (1, 1, 500, 2, 2, 64, 64),
    (3, 17, 100, 2, 2, 32, 32),
    (1, 100, 17, 2, 1, 64, 64),
    (1, 20, 31, 2, 2, 24, 40),
    (1, 7, 9, 2, 2, 5, 3),
]

_RNG = np.random.default_rng(77)

# Over q (3, sq, 4, 24), k (3, sk, hk, 24), v (3, sk, hk, 24); sq = sk = 37 and hk = 2 unless given.
OPTIONS: dict[str, dict[str, Any]] = {
    "causal": {"causal": True},
    "causal, bottom right": {"causal": True, "sq": 20, "sk": 37},
    "causal, more queries than keys": {"causal": True, "sq": 37, "sk": 20},
    "window": {"window": (5, 3)},
    "window of one": {"window": (0, 0)},
    "window, open left": {"window": (None, 2), "sq": 19},
    "window, open right": {"window": (4, None)},
    "window, open": {"window": (None, None)},
    "window and causal": {"window": (6, 6), "causal": True, "sq": 21},
    "mask per head": {"mask": _RNG.random((3, 4, 37, 37)) < 0.5},
    "mask of keys": {"mask": _RNG.random((3, 1, 1, 37)) < 0.5},
    "mask of queries": {"mask": _RNG.random((1, 1, 37, 1)) < 0.5},
    "mask and causal": {"mask": _RNG.random((1, 4, 37, 37)) < 0.5, "causal": True},
    "bias": {"bias": (3, 4, 37, 37)},
    "bias per head": {"bias": (1, 4, 37, 37), "hk": 1},
    "bias of keys": {"bias": (3, 1, 1, 37)},
    "bias, mask and window": {
        "bias": (1, 1, 37, 37),
        "mask": _RNG.random((3, 1, 37, 37)) < 0.7,
        "window": (9, 2),
    },
    "lengths": {"lengths": np.array([37, 1, 16])},
    "lengths, one empty": {"lengths": np.array([0, 36, 17]), "hk": 4},
    "lengths and causal": {"lengths": np.array([9, 30, 37]), "causal": True},
    "lengths and bias": {"lengths": np.array([9, 30, 37]), "bias": (3, 4, 37, 37)},
    "scale": {"scale": 0.05},
    "negative scale": {"scale": -0.3},
}


def operands(
    shape: tuple[int, ...], dtype: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """q, k, v and a gradient of the output, for (b, sq, sk, h, hk, d, dv)."""
    b, sq, sk, h, hk, d, dv = shape
    return (
        normal((b, sq, h, d), seed=1, dtype=dtype, scale=1.5),
        normal((b, sk, hk, d), seed=2, dtype=dtype),
        normal((b, sk, hk, dv), seed=3, dtype=dtype),
        normal((b, sq, h, dv), seed=4, dtype=dtype),
    )


def option_case(name: str, dtype: str) -> tuple[tuple[np.ndarray, ...], dict[str, Any]]:
    """The operands and the keyword arguments of one entry of ``OPTIONS``."""
    options = dict(OPTIONS[name])
    sq, sk, hk = options.pop("sq", 37), options.pop("sk", 37), options.pop("hk", 2)
    if "bias" in options:
        options["bias"] = normal(options["bias"], seed=5, dtype=dtype)
    return operands((3, sq, sk, 4, hk, 24, 24), dtype), options


@cache
def shape_truth(shape: tuple[int, ...], dtype: str) -> tuple[Any, Any]:
    """The exact and the plain results of one shape: the same for every CPU tier, so kept."""
    q, k, v, _ = operands(shape, dtype)
    exact = reference.attention(f64(q), f64(k), f64(v), return_lse=True, return_importance=True)
    return exact, plain.attention(q, k, v)


@cache
def option_truth(name: str, dtype: str) -> tuple[Any, Any]:
    (q, k, v, _), options = option_case(name, dtype)
    exact = reference.attention(
        f64(q), f64(k), f64(v), **options, return_lse=True, return_importance=True
    )
    return exact, plain.attention(q, k, v, **options)


def backward_truth(
    grad: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, options: dict[str, Any]
) -> tuple[Any, Any]:
    """Exact and plain gradients. The exact ones ignore out and lse, so none are given."""
    exact = reference.attention_backward(
        f64(grad), f64(q), f64(k), f64(v), None, None, **options, need_bias="bias" in options
    )
    return exact, plain.attention_backward(grad, q, k, v, **options)


@cache
def shape_grads(shape: tuple[int, ...], dtype: str) -> tuple[Any, Any]:
    q, k, v, grad = operands(shape, dtype)
    return backward_truth(grad, q, k, v, {})


@cache
def option_grads(name: str, dtype: str) -> tuple[Any, Any]:
    (q, k, v, grad), options = option_case(name, dtype)
    return backward_truth(grad, q, k, v, options)
