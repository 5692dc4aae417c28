"""Second-order pruning: which groups cost the output least, and what makes up for them.

Sources: Hassibi and Stork, "Second order derivatives for network pruning: optimal brain surgeon"
(1993); Kurtic et al., "The optimal BERT surgeon" (2022), for groups. For y = x·Wᵀ the error of a
changed W is tr(ΔW·G·ΔWᵀ) with the gram G = XᵀX of the inputs. All is done with the damped
H = G + damping · (mean of G's diagonal) · I. Rows of W that share their groups are a block; blocks
do not touch one another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..patterns import Pattern, PatternLike, as_pattern
from .groups import sum_per_group
from .masks import expand_mask

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Removals(NamedTuple):
    """Each block's groups, cheapest first. All are of the mask's shape (blocks, groups)."""

    order: NDArray[np.int64]
    """The group that goes at each step."""
    cost: Float
    """What that step adds to the damped error of its block."""
    price: Float
    """The cost per weight, or that of an earlier step where it was higher: for comparing blocks."""


class SecondOrder(NamedTuple):
    """A pruned matrix whose kept weights make up for the others."""

    w: Any
    """(out, in): zero where pruned."""
    mask: Any
    """bool, of the mask's shape; True = keep."""
    cost: float
    """The error ‖X·ΔWᵀ‖² against the weights that came in."""


def _gram(gram: ArrayLike, damping: float) -> tuple[Float, Float]:
    """The gram made symmetric, and the damped one."""
    g = np.asarray(gram).astype(np.float64)
    g = (g + g.T) / 2
    return g, g + damping * np.diagonal(g).mean() * np.eye(len(g))


def _bands(
    shape: tuple[int, int], pattern: PatternLike
) -> tuple[list[slice], list[NDArray[np.int64]]]:
    """The rows of each block, the columns of each group."""
    p = as_pattern(pattern)
    rows, cols = p.group_shape(shape)
    down, across = p.mask_shape(shape)
    return (
        [slice(i * rows, (i + 1) * rows) for i in range(down)],
        [np.arange(i * cols, min((i + 1) * cols, shape[1])) for i in range(across)],
    )


def _greedy(w: Float, h: Float, groups: list[NDArray[np.int64]]) -> tuple[list[int], list[float]]:
    """The order in which one block's groups go, and each step's cost."""
    w, inverse, alive = w.copy(), np.linalg.inv(h), list(range(len(groups)))
    order, costs = [], []
    while alive:
        best, best_cost = -1, math.inf
        for i in reversed(alive):  # of equals the earlier is kept
            q = groups[i]
            cost = float(np.sum(w[:, q] @ np.linalg.inv(inverse[np.ix_(q, q)]) * w[:, q]))
            if best < 0 or cost / len(q) < best_cost / len(groups[best]):
                best, best_cost = i, cost
        q = groups[best]
        gain = np.linalg.inv(inverse[np.ix_(q, q)]) @ inverse[q, :]
        w = w - w[:, q] @ gain
        inverse = inverse - inverse[:, q] @ gain
        alive.remove(best)
        order.append(best)
        costs.append(best_cost)
    return order, costs


def second_order_removals(
    w: ArrayLike,
    gram: ArrayLike,
    *,
    pattern: PatternLike,
    damping: float = 0.01,
    row_weight: ArrayLike | None = None,
) -> Removals:
    """The order in which each block of ``w`` (out, in) would lose its groups, one at a time.

    Removing the columns q from a block costs Σ_rows w_q·((H⁻¹)_qq)⁻¹·w_qᵀ. The cheapest per weight
    goes (of equals the last); then w ← w − w_q·((H⁻¹)_qq)⁻¹·(H⁻¹)_q,: and
    H⁻¹ ← H⁻¹ − (H⁻¹)_:,q·((H⁻¹)_qq)⁻¹·(H⁻¹)_q,:. An input that never was anything but zero (its
    diagonal entry is 0) makes its weights free. ``row_weight`` (out,) is how much each row counts
    in these sums; default 1.

    >>> found = second_order_removals([[1.0, 3.0, 2.0]], np.eye(3), pattern="column")
    >>> found.order.tolist(), found.cost.round(2).tolist()
    ([[0, 2, 1]], [[1.01, 4.04, 9.09]])
    """
    weights = np.asarray(w).astype(np.float64)
    g, h = _gram(gram, damping)
    shape = (weights.shape[0], weights.shape[1])
    rows, groups = _bands(shape, pattern)
    weights = np.where(np.diagonal(g) == 0, 0.0, weights)
    if row_weight is not None:
        weights = weights * np.sqrt(np.asarray(row_weight, np.float64))[:, None]
    found = [_greedy(weights[band], h, groups) for band in rows]
    grid = (len(rows), len(groups))
    order = np.array([o for o, _ in found], np.int64).reshape(grid)
    cost = np.array([c for _, c in found], np.float64).reshape(grid)
    sizes = sum_per_group(np.ones(shape), pattern)
    price = cost / np.take_along_axis(sizes, order, axis=1)
    return Removals(order, cost, np.maximum.accumulate(price, axis=1))


def _mask(removals: Sequence[Removals], relative: bool, sparsity: float) -> list[Mask]:
    """The masks of matrices whose blocks compete."""
    entries = []
    for m, found in enumerate(removals):
        total = float(found.cost.sum()) if relative else 1.0
        for (block, step), price in np.ndenumerate(found.price):
            value = float(price) / total if total > 0 else 0.0
            entries.append((value, -m, -block, step))
    pruned = max(0, min(math.floor(sparsity * len(entries) + 0.5), len(entries) - 1))
    masks = [np.ones(found.order.shape, np.bool_) for found in removals]
    for _, m, block, step in sorted(entries)[:pruned]:
        masks[-m][-block, removals[-m].order[-block, step]] = False
    return masks


def second_order_mask(
    removals: Removals | Sequence[Removals],
    *,
    sparsity: float,
    scope: str = "matrix",
    relative: bool = True,
) -> Mask | list[Mask]:
    """Which groups go: the cheapest removals over all blocks, each block's in its own order.

    Of the n groups of a matrix, or of all matrices ("global"), min(floor(sparsity·n + 0.5), n − 1)
    go, those of the lowest price; of equals the earlier is kept. Across matrices a price counts
    relative to its matrix's output, tr(W·H·Wᵀ), which is the sum of its costs, unless ``relative``
    is False.

    >>> found = second_order_removals([[1.0, 3.0, 2.0]], np.eye(3), pattern="column")
    >>> second_order_mask(found, sparsity=0.5).tolist()
    [[False, True, False]]
    """
    listed = [removals] if isinstance(removals, Removals) else list(removals)
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"second_order_mask: sparsity is {sparsity}, expected a value in [0, 1)")
    if scope not in ("matrix", "global"):
        raise ValueError(f"second_order_mask: scope is {scope!r}, expected 'matrix' or 'global'")
    if scope == "global":
        masks = _mask(listed, relative, sparsity)
    else:
        masks = [_mask([found], False, sparsity)[0] for found in listed]
    return masks[0] if isinstance(removals, Removals) else masks


def second_order_apply(
    w: ArrayLike,
    gram: ArrayLike,
    mask: ArrayLike,
    *,
    pattern: PatternLike,
    damping: float = 0.01,
) -> SecondOrder:
    """The weights that stay under a mask, changed so that the output changes least.

    With S the columns that a block loses: w − w_S·((H⁻¹)_SS)⁻¹·(H⁻¹)_S,:, which is what the
    removals one after another give in any order. Blocks that lose nothing keep their weights.

    >>> w, gram = [[1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]
    >>> pruned = second_order_apply(w, gram, [[True, False]], pattern="column", damping=1e-9)
    >>> pruned.w.round(6).tolist()
    [[2.0, 0.0]]
    """
    weights = np.asarray(w).astype(np.float64)
    g, h = _gram(gram, damping)
    keep = np.asarray(mask, np.bool_)
    shape = (weights.shape[0], weights.shape[1])
    rows, _ = _bands(shape, pattern)
    expanded = expand_mask(keep, shape, pattern=pattern)
    result = weights.copy()
    for band in rows:
        if len(result[band]) == 0:
            continue
        gone = np.flatnonzero(~expanded[band][0])
        if len(gone) > 0:
            inverse = np.linalg.inv(h)
            moved = np.linalg.solve(inverse[np.ix_(gone, gone)], inverse[gone, :])
            result[band] -= weights[band][:, gone] @ moved
            result[band][:, gone] = 0.0
    change = result - weights
    return SecondOrder(result, keep, float(np.sum(change @ g * change)))


def second_order_prune(
    w: ArrayLike | Sequence[ArrayLike],
    gram: ArrayLike | Sequence[ArrayLike],
    *,
    pattern: PatternLike | Sequence[PatternLike],
    sparsity: float,
    scope: str = "matrix",
    damping: float = 0.01,
) -> SecondOrder | list[SecondOrder]:
    """Removals, mask and compensated weights of one matrix, or of a list beside a list of grams.

    >>> w, gram = np.array([[1.0, 1.0, 3.0]]), np.array([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])
    >>> second_order_prune(w, gram, pattern="column", sparsity=0.3, damping=1e-9).mask.tolist()
    [[True, False, True]]
    """
    several = isinstance(w, (list, tuple))
    matrices: Any = w if several else [w]
    grams: Any = gram if several else [gram]
    patterns = [pattern] * len(matrices) if isinstance(pattern, (str, Pattern)) else list(pattern)
    found = [
        second_order_removals(m, g, pattern=p, damping=damping)
        for m, g, p in zip(matrices, grams, patterns, strict=True)
    ]
    masks = second_order_mask(found, sparsity=sparsity, scope=scope)
    pruned = [
        second_order_apply(m, g, mask, pattern=p, damping=damping)
        for m, g, mask, p in zip(matrices, grams, masks, patterns, strict=True)
    ]
    return pruned if several else pruned[0]
