"""What an encoder needs besides its products: normalisation, GELU, dropout, softmax, embedding."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .philox import philox4x32

Float = NDArray[np.float64]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def layer_norm(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike,
    *,
    eps: float = 1e-12,
    residual: ArrayLike | None = None,
) -> Float:
    """(y − mean)/√(variance + eps)·weight + bias over the last axis of y = x + residual.

    The variance is the population's (divided by n), as in Ba et al., "Layer normalization" (2016).

    >>> layer_norm([1.0, 3.0], [1.0, 1.0], [0.0, 10.0], eps=0.0).tolist()
    [-1.0, 11.0]
    """
    y = np.asarray(x).astype(np.float64)
    if residual is not None:
        y = y + np.asarray(residual).astype(np.float64)
    if y.size == 0:
        return y
    with np.errstate(invalid="ignore"):
        centred = y - y.mean(axis=-1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
        scaled: Float = normal * np.asarray(weight).astype(np.float64)
        return scaled + np.asarray(bias).astype(np.float64)


def gelu(x: ArrayLike, *, approximate: str = "none") -> Float:
    """x·Φ(x) with Φ the normal distribution function, or its tanh approximation.

    Both forms are Hendrycks and Gimpel's, "Gaussian error linear units" (2016). Raises ValueError
    for another ``approximate`` than "none" and "tanh".

    >>> gelu([0.0, 100.0, -100.0]).tolist()
    [0.0, 100.0, -0.0]
    """
    x64 = np.asarray(x).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        if approximate == "none":
            if x64.size == 0:
                return x64
            return np.asarray(0.5 * x64 * (1.0 + _erf(x64 / math.sqrt(2.0))))
        if approximate == "tanh":
            inner = math.sqrt(2.0 / math.pi) * (x64 + 0.044715 * x64**3)
            return np.asarray(0.5 * x64 * (1.0 + np.tanh(inner)))
    raise ValueError(f"gelu: approximate is {approximate!r}, expected 'none' or 'tanh'")


def dropout(x: ArrayLike, *, p: float, seed: int) -> Float:
    """x/(1 − p) where the element is kept, else 0.

    Element n in row-major order is kept iff its word is at least floor(p·2³²): word n // 16 % 4 of
    the counter (c % 2³², c // 2³², 0, 2³² − 1) with c = n // 64 · 16 + n % 16.

    >>> dropout([1.0] * 8, p=0.5, seed=0).tolist()
    [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 0.0, 2.0]
    """
    x64 = np.asarray(x).astype(np.float64)
    n = np.arange(x64.size, dtype=np.uint64).reshape(x64.shape)
    c = n // 64 * 16 + n % 16
    counter = np.stack([c % 2**32, c // 2**32, 0 * c, 0 * c + (2**32 - 1)], axis=-1)
    word = np.take_along_axis(
        philox4x32(counter, seed), (n // 16 % 4).astype(np.int64)[..., None], axis=-1
    )[..., 0]
    return np.where(word >= math.floor(p * 2**32), x64 / (1.0 - p), 0.0)


def softmax(x: ArrayLike) -> Float:
    """exp(x)/Σexp(x) over the last axis; a row that is −inf throughout gives zeros.

    >>> softmax([0.0, 0.0]).tolist()
    [0.5, 0.5]
    """
    x64 = np.asarray(x).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        top = x64.max(axis=-1, keepdims=True, initial=-np.inf)
        nothing = top == -np.inf
        weights = np.exp(x64 - np.where(nothing, 0.0, top))
        return weights / np.where(nothing, 1.0, weights.sum(axis=-1, keepdims=True))


def embedding(ids: ArrayLike, table: ArrayLike) -> Float:
    """Rows of ``table`` (vocabulary, width) picked by ``ids``: (…, width).

    Raises ValueError for an id outside the table, negative ones included.

    >>> embedding([1, 0], [[1.0, 2.0], [3.0, 4.0]]).tolist()
    [[3.0, 4.0], [1.0, 2.0]]
    """
    rows, table64 = np.asarray(ids), np.asarray(table).astype(np.float64)
    wrong = (rows < 0) | (rows >= len(table64))
    if wrong.any():
        raise ValueError(
            f"embedding: ids holds {rows[wrong].flat[0]}, expected 0 to {len(table64) - 1}"
        )
    picked: Float = table64[rows]
    return picked
