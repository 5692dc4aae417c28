"""The linear layer and its gradients."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .activations import gelu

Float = NDArray[np.float64]


class LinearGrads(NamedTuple):
    """Gradients of a loss with respect to a linear layer's inputs; None where not asked."""

    x: Float | None
    w: Float | None
    bias: Float | None


def linear(
    x: ArrayLike,
    w: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    activation: str | None = None,
    residual: ArrayLike | None = None,
    compute: str | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """activation(x·wᵀ + bias) + residual, for x (…, in) and w (out, in): (…, out).

    ``activation`` is None, "gelu", "gelu_tanh", "relu" or "tanh"; another raises ValueError.
    ``compute`` says in what precision the fast op multiplies; here that is float64 always.

    >>> linear([[1.0, 2.0]], [[3.0, 4.0], [-1.0, 0.0]], activation="relu").tolist()
    [[11.0, 0.0]]
    """
    y = np.asarray(x).astype(np.float64) @ np.asarray(w).astype(np.float64).T
    if bias is not None:
        y = y + np.asarray(bias).astype(np.float64)
    if activation == "gelu":
        y = gelu(y)
    elif activation == "gelu_tanh":
        y = gelu(y, approximate="tanh")
    elif activation == "relu":
        y = np.maximum(y, 0.0)
    elif activation == "tanh":
        y = np.tanh(y)
    elif activation is not None:
        raise ValueError(
            f"linear: activation is {activation!r}, expected None, 'gelu', 'gelu_tanh', 'relu' "
            f"or 'tanh'"
        )
    if residual is not None:
        y = y + np.asarray(residual).astype(np.float64)
    if out is None:
        return y
    out[...] = y
    return out


def linear_backward(
    grad: ArrayLike,
    x: ArrayLike,
    w: ArrayLike,
    *,
    need: Collection[str] = ("x", "w", "bias"),
) -> LinearGrads:
    """Gradients of y = x·wᵀ + b for ``grad`` (…, out), summed over the leading axes.

    >>> linear_backward([[2.0]], [[1.0, 3.0]], [[5.0, 7.0]]).x.tolist()
    [[10.0, 14.0]]
    """
    grad64, x64, w64 = (np.asarray(a).astype(np.float64) for a in (grad, x, w))
    grad_rows = grad64.reshape(-1, w64.shape[0])
    x_rows = x64.reshape(-1, w64.shape[1])
    return LinearGrads(
        grad64 @ w64 if "x" in need else None,
        grad_rows.T @ x_rows if "w" in need else None,
        grad_rows.sum(axis=0) if "bias" in need else None,
    )
