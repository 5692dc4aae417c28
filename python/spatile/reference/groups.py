"""Group norms, the reweighted group lasso and its proximal step (E.T., SC 2021, section 4).

A matrix is padded with zeros to whole groups; what the padding adds to a norm is nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..patterns import PatternLike, as_pattern

Float = NDArray[np.float64]


def per_element(groups: ArrayLike, shape: tuple[int, int], pattern: PatternLike) -> NDArray[Any]:
    """A per-group array (mask shape of ``shape``) repeated onto every element: shape ``shape``."""
    rows, cols = as_pattern(pattern).group_shape(shape)
    grid = np.asarray(groups)
    return grid.repeat(rows, axis=0).repeat(cols, axis=1)[: shape[0], : shape[1]]


def sum_per_group(values: ArrayLike, pattern: PatternLike) -> Float:
    """The sum of each group's elements of ``values`` (out, in): mask shape."""
    x = np.asarray(values).astype(np.float64)
    shape = (x.shape[0], x.shape[1])
    rows, cols = as_pattern(pattern).group_shape(shape)
    down, across = as_pattern(pattern).mask_shape(shape)
    padded = np.pad(x, ((0, down * rows - shape[0]), (0, across * cols - shape[1])))
    totals: Float = padded.reshape(down, rows, across, cols).sum(axis=(1, 3))
    return totals


def group_norms(w: ArrayLike, *, pattern: PatternLike) -> Float:
    """L2 norm of each group of ``w`` (out, in): sqrt of the sum of squares of its elements.

    >>> group_norms([[3.0, 0.0], [4.0, 1.0]], pattern="column").tolist()
    [[5.0, 1.0]]
    """
    norms: Float = np.sqrt(sum_per_group(np.asarray(w).astype(np.float64) ** 2, pattern))
    return norms


def group_beta(w: ArrayLike, *, pattern: PatternLike, eps: float = 1e-3) -> Float:
    """The reweighting 1 / (norm + eps) of each group.

    >>> group_beta([[3.0, 4.0]], pattern="row", eps=1.0).tolist()
    [[0.16666666666666666]]
    """
    return 1.0 / (group_norms(w, pattern=pattern) + eps)


def _beta_or_ones(beta: ArrayLike | None, norms: Float) -> Float:
    return np.ones_like(norms) if beta is None else np.asarray(beta).astype(np.float64)


def group_lasso(w: ArrayLike, *, pattern: PatternLike, beta: ArrayLike | None = None) -> float:
    """The penalty Σ β·‖W_g‖₂ over all groups.

    >>> group_lasso([[3.0, 4.0], [0.0, 2.0]], pattern="row")
    7.0
    """
    norms = group_norms(w, pattern=pattern)
    return float((_beta_or_ones(beta, norms) * norms).sum())


def group_lasso_grad(
    w: ArrayLike, *, pattern: PatternLike, beta: ArrayLike | None = None, strength: float
) -> Float:
    """strength·β·w/‖W_g‖ (out, in); 0 throughout a zero group.

    >>> group_lasso_grad([[3.0, 4.0], [0.0, 0.0]], pattern="row", strength=10.0).tolist()
    [[6.0, 8.0], [0.0, 0.0]]
    """
    w64 = np.asarray(w).astype(np.float64)
    norms = group_norms(w64, pattern=pattern)
    rate = np.zeros_like(norms)
    np.divide(strength * _beta_or_ones(beta, norms), norms, out=rate, where=norms != 0)
    with np.errstate(invalid="ignore"):
        gradient: Float = per_element(rate, (w64.shape[0], w64.shape[1]), pattern) * w64
    return gradient


def add_group_lasso_grad_(
    grad: NDArray[Any],
    w: ArrayLike,
    *,
    pattern: PatternLike,
    beta: ArrayLike | None = None,
    strength: float,
) -> NDArray[Any]:
    """Adds :func:`group_lasso_grad` to ``grad`` in place; returns ``grad``.

    >>> add_group_lasso_grad_(np.ones((1, 2)), [[3.0, 4.0]], pattern="row", strength=5.0).tolist()
    [[4.0, 5.0]]
    """
    grad += group_lasso_grad(w, pattern=pattern, beta=beta, strength=strength).astype(grad.dtype)
    return grad


def group_shrink_(
    w: NDArray[Any], *, pattern: PatternLike, beta: ArrayLike | None = None, strength: float
) -> NDArray[Any]:
    """The proximal step in place, w_g ← w_g·max(0, 1 − strength·β/‖w_g‖); returns ``w``.

    >>> group_shrink_(np.array([[3.0, 4.0], [0.3, 0.4]]), pattern="row", strength=2.5).tolist()
    [[1.5, 2.0], [0.0, 0.0]]
    """
    norms = group_norms(w, pattern=pattern)
    cut = np.zeros_like(norms)
    np.divide(strength * _beta_or_ones(beta, norms), norms, out=cut, where=norms != 0)
    kept = np.maximum(0.0, 1.0 - cut)
    w[...] = (per_element(kept, (w.shape[0], w.shape[1]), pattern) * w.astype(np.float64)).astype(
        w.dtype
    )
    return w
