"""Which groups are pruned, and a pruned matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ..patterns import Pattern, PatternLike, as_pattern
from .groups import group_norms, per_element, sum_per_group

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]


def _keep(norms: Float, sizes: Float, sparsity: float) -> Mask:
    """The keep mask of one scope unit, flat.

    The stable sort by falling score puts the earlier of equals first, so cutting its tail keeps it.
    """
    scores = norms if len(set(sizes.tolist())) <= 1 else norms / np.sqrt(sizes)
    pruned = max(0, min(math.floor(sparsity * scores.size + 0.5), scores.size - 1))
    order = np.argsort(-scores, kind="stable")
    keep = np.ones(scores.size, np.bool_)
    keep[order[scores.size - pruned :]] = False
    return keep


def prune_mask(
    w: NDArray[Any] | Sequence[NDArray[Any]],
    *,
    pattern: PatternLike | Sequence[PatternLike],
    sparsity: float,
    scope: str = "matrix",
) -> Mask | list[Mask]:
    """Percentile pruning: bool mask (True = keep) of the mask shape, or a list of them for a list.

    In each scope unit, a matrix, all matrices ("global") or one row of groups ("row-balanced"),
    min(floor(sparsity·n + 0.5), n − 1) of the n groups go, those of the lowest norm, or of the
    lowest norm/√size where the unit's groups differ in size. Of equals the earlier is kept. Raises
    ValueError for a sparsity outside [0, 1), an unknown scope, and weights that are not finite.

    >>> prune_mask(np.array([[1.0, 3.0, 2.0, 2.0]]), pattern="element", sparsity=0.5).tolist()
    [[False, True, True, False]]
    """
    several = isinstance(w, (list, tuple))
    matrices = [np.asarray(x).astype(np.float64) for x in (w if several else [w])]
    if isinstance(pattern, (str, Pattern)):
        patterns = [as_pattern(pattern)] * len(matrices)
    else:
        patterns = [as_pattern(p) for p in pattern]
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"prune_mask: sparsity is {sparsity}, expected a value in [0, 1)")
    if not all(np.isfinite(x).all() for x in matrices):
        raise ValueError("prune_mask: w holds NaN or infinity, expected finite weights")
    norms = [group_norms(x, pattern=p) for x, p in zip(matrices, patterns, strict=True)]
    sizes = [sum_per_group(np.ones(x.shape), p) for x, p in zip(matrices, patterns, strict=True)]
    if scope == "matrix":
        masks = [
            _keep(n.ravel(), s.ravel(), sparsity).reshape(n.shape)
            for n, s in zip(norms, sizes, strict=True)
        ]
    elif scope == "row-balanced":
        masks = [
            np.array([_keep(n[i], s[i], sparsity) for i in range(len(n))], np.bool_).reshape(
                n.shape
            )
            for n, s in zip(norms, sizes, strict=True)
        ]
    elif scope == "global":
        every = [np.concatenate([x.ravel() for x in xs] or [np.empty(0)]) for xs in (norms, sizes)]
        keep = _keep(every[0], every[1], sparsity)
        ends = np.cumsum([n.size for n in norms])
        masks = [keep[e - n.size : e].reshape(n.shape) for n, e in zip(norms, ends, strict=True)]
    else:
        raise ValueError(
            f"prune_mask: scope is {scope!r}, expected 'matrix', 'global' or 'row-balanced'"
        )
    return masks if several else masks[0]


def expand_mask(mask: ArrayLike, shape: tuple[int, int], *, pattern: PatternLike) -> Mask:
    """The mask of every element of a matrix of ``shape``: bool (out, in).

    >>> expand_mask([[True], [False]], (2, 3), pattern="row").astype(int).tolist()
    [[1, 1, 1], [0, 0, 0]]
    """
    return per_element(np.asarray(mask, np.bool_), shape, pattern)


def apply_mask_(w: NDArray[Any], mask: ArrayLike, *, pattern: PatternLike) -> NDArray[Any]:
    """Zeroes the pruned groups of ``w`` in place; returns ``w``.

    >>> apply_mask_(np.ones((2, 2)), [[True, False]], pattern="column").tolist()
    [[1.0, 0.0], [1.0, 0.0]]
    """
    w[~expand_mask(mask, (w.shape[0], w.shape[1]), pattern=pattern)] = 0
    return w


def pack(
    w: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    pattern: PatternLike = "tile",
    dtype: DTypeLike | None = None,
) -> Float:
    """What a packed matrix stands for: the dense ``w`` with its pruned groups at zero, float64.

    The packed form itself is storage, which has no meaning of its own here. ``dtype``, where given,
    is what the weights are rounded to on the way.

    >>> pack([[1.0, 2.0]], [[True, False]], pattern="element").tolist()
    [[1.0, 0.0]]
    """
    rounded = np.asarray(w) if dtype is None else np.asarray(w).astype(dtype)
    w64 = rounded.astype(np.float64)
    return w64 if mask is None else apply_mask_(w64.copy(), mask, pattern=pattern)
