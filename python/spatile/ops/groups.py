"""Group norms, the reweighted group lasso, its gradient and its proximal step.

Source: E.T. (SC 2021), section 4. A pattern cuts w (out, in) into a grid of groups; arrays with one
entry per group have ``pattern.mask_shape(w.shape)``. What an edge group lacks counts nowhere.
"""

from __future__ import annotations

import numpy as np

from spatile import _core
from spatile.ops.arrays import Array, check_apart, empty, is_same, kind_of, shape_of
from spatile.patterns import Pattern, PatternLike, as_pattern

__all__ = [
    "add_group_lasso_grad_",
    "group_beta",
    "group_lasso",
    "group_lasso_grad",
    "group_norms",
    "group_shrink_",
]


def matrix_shape(op: str, arg: str, w: Array) -> tuple[int, int]:
    """The shape of a matrix. ValueError for another number of dimensions."""
    kind_of(op, arg, w)
    shape = shape_of(w)
    if len(shape) != 2:
        raise ValueError(f"{op}: {arg} has {len(shape)} dimensions, expected 2")
    return shape[0], shape[1]


def grid_of(shape: tuple[int, int], pattern: Pattern) -> tuple[int, int]:
    """Rows and columns of a group, no larger than the matrix."""
    rows, cols = pattern.group_shape(shape)
    return min(rows, max(1, shape[0])), min(cols, max(1, shape[1]))


def _optional_beta(op: str, beta: Array | None) -> Array | None:
    if beta is not None:
        kind_of(op, "beta", beta)
    return beta


def _empty_like(w: Array, shape: tuple[int, int]) -> Array:
    """Uninitialised, of w's shape, kind, dtype and order of memory."""
    strides = w.strides if isinstance(w, np.ndarray) else getattr(w, "stride", tuple)()
    if len(strides) == 2 and abs(strides[0]) < abs(strides[1]):
        return empty(w, (shape[1], shape[0])).T
    return empty(w, shape)


def group_norms(w: Array, *, pattern: PatternLike) -> Array:
    """The L2 norm of each group.

    Parameters
    ----------
    w : (out, in) float32, float16 or bfloat16
    pattern : what a group is; a pattern or its name

    Returns
    -------
    float32, ``pattern.mask_shape(w.shape)``, of w's kind; squares are summed in double.

    Raises
    ------
    ValueError (shapes, pattern), TypeError (dtypes).

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> sp.group_norms(np.ones((32, 48), np.float32), pattern="tile").tolist()
    [[16.0, 16.0, 16.0], [16.0, 16.0, 16.0]]
    """
    op = "group_norms"
    shape, pattern = matrix_shape(op, "w", w), as_pattern(pattern)
    norms = empty(w, pattern.mask_shape(shape), "float32")
    _core.group_norms(w, *grid_of(shape, pattern), norms)
    return norms


def group_beta(w: Array, *, pattern: PatternLike, eps: float = 1e-3) -> Array:
    """The lasso's weights β = 1 / (norm + eps): small groups are pulled hardest (the reweighting).

    Parameters
    ----------
    w : (out, in) float32, float16 or bfloat16
    pattern : what a group is; a pattern or its name
    eps : finite, at least 0

    Returns
    -------
    float32, ``pattern.mask_shape(w.shape)``, of w's kind.

    Raises
    ------
    ValueError (shapes, pattern, eps), TypeError (dtypes).

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> sp.group_beta(np.full((1, 4), 2, np.float32), pattern="row", eps=1.0).tolist()
    [[0.20000000298023224]]
    """
    op = "group_beta"
    shape, pattern = matrix_shape(op, "w", w), as_pattern(pattern)
    beta = empty(w, pattern.mask_shape(shape), "float32")
    _core.group_beta(w, *grid_of(shape, pattern), eps, beta)
    return beta


def group_lasso(w: Array, *, pattern: PatternLike, beta: Array | None = None) -> float:
    """The penalty Σ β·‖W_g‖₂ over all groups, summed in double.

    Parameters
    ----------
    w : (out, in) float32, float16 or bfloat16
    pattern : what a group is; a pattern or its name
    beta : ``pattern.mask_shape(w.shape)``, from :func:`group_beta`; None means 1 throughout

    Raises
    ------
    ValueError (shapes, pattern), TypeError (dtypes).

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> sp.group_lasso(np.array([[3, 4], [0, 2]], np.float32), pattern="row")
    7.0
    """
    op = "group_lasso"
    shape, pattern = matrix_shape(op, "w", w), as_pattern(pattern)
    return _core.group_lasso(w, *grid_of(shape, pattern), _optional_beta(op, beta))


def group_lasso_grad(
    w: Array, *, pattern: PatternLike, beta: Array | None = None, strength: float
) -> Array:
    """The gradient of strength·Σ β·‖W_g‖₂: strength·β·w/‖W_g‖₂, and 0 throughout a zero group.

    Parameters
    ----------
    w : (out, in) float32, float16 or bfloat16
    pattern : what a group is; a pattern or its name
    beta : ``pattern.mask_shape(w.shape)``; None means 1 throughout
    strength : λ, finite, at least 0

    Returns
    -------
    (out, in) of w's kind and dtype, in w's order of memory.

    Raises
    ------
    ValueError (shapes, pattern, strength), TypeError (dtypes).

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> w = np.array([[3, 4], [0, 0]], np.float32)
    >>> sp.group_lasso_grad(w, pattern="row", strength=10.0).tolist()
    [[6.0, 8.0], [0.0, 0.0]]
    """
    op = "group_lasso_grad"
    shape, pattern = matrix_shape(op, "w", w), as_pattern(pattern)
    grad = _empty_like(w, shape)
    grid = grid_of(shape, pattern)
    _core.group_lasso_grad(w, *grid, _optional_beta(op, beta), strength, grad, False)
    return grad


def add_group_lasso_grad_(
    grad: Array, w: Array, *, pattern: PatternLike, beta: Array | None = None, strength: float
) -> Array:
    """Add :func:`group_lasso_grad` to ``grad`` in place.

    Parameters
    ----------
    grad : (out, in) float32, float16 or bfloat16, writable
    w, pattern, beta, strength : as in :func:`group_lasso_grad`

    Returns
    -------
    ``grad``

    Raises
    ------
    ValueError (shapes, pattern, strength, a read-only grad), TypeError (dtypes).

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> grad, w = np.ones((1, 2), np.float32), np.array([[3, 4]], np.float32)
    >>> sp.add_group_lasso_grad_(grad, w, pattern="row", strength=5.0).tolist()
    [[4.0, 5.0]]
    """
    op = "add_group_lasso_grad_"
    shape, pattern = matrix_shape(op, "w", w), as_pattern(pattern)
    grid = grid_of(shape, pattern)
    kind_of(op, "grad", grad)
    if grad is not w and not is_same(op, "grad", grad, w):  # over itself it may be written
        check_apart(op, "grad", grad, "w", w)
    _core.group_lasso_grad(w, *grid, _optional_beta(op, beta), strength, grad, True)
    return grad


def group_shrink_(
    w: Array, *, pattern: PatternLike, beta: Array | None = None, strength: float
) -> Array:
    """The lasso's proximal step in place: w_g ← w_g·max(0, 1 − strength·β/‖W_g‖₂).

    A group whose norm is at most strength·β becomes zero. Source: Parikh and Boyd, "Proximal
    algorithms" (2014), section 6.5.1.

    Parameters
    ----------
    w : (out, in) float32, float16 or bfloat16, writable
    pattern : what a group is; a pattern or its name
    beta : ``pattern.mask_shape(w.shape)``; None means 1 throughout
    strength : ηλ, finite, at least 0

    Returns
    -------
    ``w``

    Raises
    ------
    ValueError (shapes, pattern, strength, a read-only w), TypeError (dtypes).

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> w = np.array([[3, 4], [0.3, 0.4]], np.float32)
    >>> sp.group_shrink_(w, pattern="row", strength=2.5).tolist()
    [[1.5, 2.0], [0.0, 0.0]]
    """
    op = "group_shrink_"
    shape, pattern = matrix_shape(op, "w", w), as_pattern(pattern)
    _core.group_shrink(w, *grid_of(shape, pattern), _optional_beta(op, beta), strength)
    return w
