"""Which groups are pruned, and a mask on the weights."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Literal

from spatile import _core
from spatile.ops.arrays import Array, empty, kind_of
from spatile.ops.groups import grid_of, matrix_shape
from spatile.patterns import Pattern, PatternLike, as_pattern

__all__ = ["apply_mask_", "expand_mask", "prune_mask"]

_SCOPES = {"matrix": 0, "global": 1, "row-balanced": 2}


def _patterns(
    pattern: PatternLike | Sequence[PatternLike], count: int, several: bool
) -> list[Pattern]:
    if isinstance(pattern, (str, Pattern)):
        return [as_pattern(pattern)] * count
    if not several:
        raise TypeError("prune_mask: pattern is a list, expected one pattern for one matrix")
    patterns = [as_pattern(p) for p in pattern]
    if len(patterns) != count:
        raise ValueError(
            f"prune_mask: pattern has {len(patterns)} entries, expected {count}, one per matrix"
        )
    return patterns


def prune_mask(
    w: Array | Sequence[Array],
    *,
    pattern: PatternLike | Sequence[PatternLike],
    sparsity: float,
    scope: Literal["matrix", "global", "row-balanced"] = "matrix",
) -> Array | list[Array]:
    """Percentile pruning: which groups stay (True) when those of the smallest weights go.

    Of the n groups that compete, exactly min(floor(sparsity·n + 0.5), n − 1) are pruned, those of
    the lowest root mean square: the norm over √(elements inside the matrix), so groups of unequal
    size compete fairly. Of equals the earlier is kept (list order, then row by row). Source: E.T.
    (SC 2021), section 4.

    Parameters
    ----------
    w : (out, in) float32, float16 or bfloat16, or a list of such matrices
    pattern : what a group is; or a list of patterns beside a list of matrices
    sparsity : in [0, 1), the fraction of groups to prune
    scope : which groups compete: those of one matrix, of all matrices together ("global"), or of
        one row of the grid ("row-balanced")

    Returns
    -------
    bool, ``pattern.mask_shape(w.shape)``, of w's kind; a list of them for a list.

    Raises
    ------
    ValueError (shapes, sparsity, scope, NaN or infinity in w), TypeError (dtypes).

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> w = np.array([[1, 3, 2, 2]], np.float32)
    >>> sp.prune_mask(w, pattern="element", sparsity=0.5).tolist()
    [[False, True, True, False]]
    """
    op = "prune_mask"
    several = isinstance(w, (list, tuple))
    matrices = list(w) if several else [w]
    patterns = _patterns(pattern, len(matrices), several)
    if scope not in _SCOPES:
        raise ValueError(
            f"{op}: scope is {scope!r}, expected one of {', '.join(map(repr, _SCOPES))}"
        )
    masks, problem = [], []
    for i, (matrix, p) in enumerate(zip(matrices, patterns, strict=True)):
        shape = matrix_shape(op, f"w[{i}]" if several else "w", matrix)
        masks.append(empty(matrix, p.mask_shape(shape), "bool"))
        problem.append((matrix, *grid_of(shape, p), masks[-1]))
    _core.prune_mask(tuple(problem), sparsity, _SCOPES[scope])
    return masks if several else masks[0]


def expand_mask(mask: Array, shape: tuple[int, int], *, pattern: PatternLike) -> Array:
    """The mask of every element of a matrix: each group's entry repeated over the group.

    Parameters
    ----------
    mask : bool, ``pattern.mask_shape(shape)``
    shape : (out, in) of the matrix
    pattern : what the mask's entries stand for

    Returns
    -------
    bool (out, in) of mask's kind.

    Raises
    ------
    ValueError (shapes, pattern), TypeError (dtype).

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> sp.expand_mask(np.array([[True], [False]]), (2, 3), pattern="row").astype(int).tolist()
    [[1, 1, 1], [0, 0, 0]]
    """
    op = "expand_mask"
    kind_of(op, "mask", mask)
    sides = tuple(operator.index(n) for n in shape)
    if len(sides) != 2 or min(sides) < 0:
        raise ValueError(f"{op}: shape is {tuple(shape)}, expected (out, in)")
    expanded = empty(mask, sides, "bool")
    _core.expand_mask(mask, *grid_of((sides[0], sides[1]), as_pattern(pattern)), expanded)
    return expanded


def apply_mask_(w: Array, mask: Array, *, pattern: PatternLike) -> Array:
    """Set the pruned groups of ``w`` to zero in place, whatever they hold.

    Parameters
    ----------
    w : (out, in) float32, float16 or bfloat16, writable
    mask : bool, ``pattern.mask_shape(w.shape)``, True = keep
    pattern : what the mask's entries stand for

    Returns
    -------
    ``w``

    Raises
    ------
    ValueError (shapes, pattern, a read-only w), TypeError (dtypes).

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> w = np.ones((2, 2), np.float32)
    >>> sp.apply_mask_(w, np.array([[True, False]]), pattern="column").tolist()
    [[1.0, 0.0], [1.0, 0.0]]
    """
    op = "apply_mask_"
    kind_of(op, "mask", mask)
    shape = matrix_shape(op, "w", w)
    _core.apply_mask(w, *grid_of(shape, as_pattern(pattern)), mask)
    return w
