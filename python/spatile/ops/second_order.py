"""Second-order pruning: which groups cost the output least, and what makes up for them."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from spatile import _core
from spatile.ops.arrays import Array, empty, kind_of, shape_of, to_numpy
from spatile.ops.groups import grid_of, matrix_shape
from spatile.patterns import Pattern, PatternLike, as_pattern

__all__ = [
    "Removals",
    "SecondOrder",
    "second_order_apply",
    "second_order_mask",
    "second_order_prune",
    "second_order_removals",
]


class Removals(NamedTuple):
    """Each block's groups, cheapest first. All are of the mask's shape (blocks, groups)."""

    order: Array
    """int64: the group that goes at each step."""
    cost: Array
    """float64: what that step adds to the damped error of its block."""
    price: Array
    """float64: the cost per weight, or that of an earlier step where it was higher."""


class SecondOrder(NamedTuple):
    """A pruned matrix whose kept weights make up for the others."""

    w: Array
    """(out, in) of the matrix's kind and dtype: zero where pruned."""
    mask: Array
    """bool, of the mask's shape; True = keep."""
    cost: float
    """The error ‖X·ΔWᵀ‖² against the weights that came in."""


def _prices(order: np.ndarray, cost: np.ndarray, shape: tuple[int, int], p: Pattern) -> np.ndarray:
    """What second_order_mask compares: a block's later removals wait for its earlier ones."""
    rows, cols = grid_of(shape, p)
    height = np.minimum(rows, shape[0] - rows * np.arange(order.shape[0]))
    width = np.minimum(cols, shape[1] - cols * order)
    price: np.ndarray = np.maximum.accumulate(cost / (height[:, None] * width), axis=1)
    return price


def _weighted(
    op: str, w: Array, row_weight: Array, shape: tuple[int, int]
) -> tuple[np.ndarray, float]:
    """Rows times the roots of their weights over the largest weight, and that."""
    given = np.asarray(to_numpy(op, "row_weight", row_weight), np.float64)
    if given.shape != (shape[0],):
        raise ValueError(f"{op}: row_weight.shape is {given.shape}, expected ({shape[0]},)")
    wrong = given[~(np.isfinite(given) & (given >= 0))]
    if wrong.size:
        raise ValueError(f"{op}: row_weight holds {wrong[0]:g}, expected numbers of at least 0")
    most = float(given.max(initial=0.0))
    root = np.sqrt(given / most) if most > 0 else given
    matrix = to_numpy(op, "w", w)
    if matrix.dtype.itemsize > 4 or matrix.dtype.kind in "iub":
        return matrix, most  # which the core refuses by name
    weighted = matrix.astype(np.float32)
    # Zero times infinity is NaN, which the core refuses by name.
    with np.errstate(invalid="ignore"):
        weighted *= root[:, None].astype(np.float32)
    return weighted, most


def _removals(
    op: str,
    index: int,
    w: Array,
    gram: Array,
    pattern: Pattern,
    damping: float,
    row_weight: Array | None = None,
) -> Removals:
    name = "w" if index < 0 else f"w[{index}]"
    shape = matrix_shape(op, name, w)
    kind_of(op, "gram" if index < 0 else f"gram[{index}]", gram)
    grid = pattern.mask_shape(shape)
    order, cost = empty(w, grid, "int64"), empty(w, grid, "float64")
    seen, most = (w, 1.0) if row_weight is None else _weighted(op, w, row_weight, shape)
    grid_shape = grid_of(shape, pattern)
    _core.second_order_removals(op, index, seen, *grid_shape, gram, damping, order, cost)
    price = empty(w, grid, "float64")
    arrays = (to_numpy(op, "order", order), to_numpy(op, "cost", cost))
    arrays[1][...] *= most
    to_numpy(op, "price", price)[...] = _prices(*arrays, shape, pattern)
    return Removals(order, cost, price)


def second_order_removals(
    w: Array,
    gram: Array,
    *,
    pattern: PatternLike,
    damping: float = 0.01,
    row_weight: Array | None = None,
) -> Removals:
    """The order in which each block of a matrix would lose its groups, and what each costs.

    The rows of w that share their groups are a block: 16 rows for tiles, all rows for columns. With
    H = gram + damping · (mean of its diagonal) · I, removing the columns q from a block costs
    Σ_rows w_q·((H⁻¹)_qq)⁻¹·w_qᵀ; the group that is cheapest per weight goes (of equals the last),
    the others make up for it, and so on until none is left. An input whose diagonal entry is 0
    makes its weights free. Rows have nothing that could make up for them: they cost w·H·wᵀ. Source:
    Hassibi and Stork, "Second order derivatives for network pruning" (1993), in the form for groups
    of Kurtic et al., "The optimal BERT surgeon" (2022).

    A block takes in³/6 multiply-adds in float64, whatever the size of its groups: single weights
    ("element"), which make each row a block, take 16 times as many as tiles. Memory: 8·in² bytes,
    and 4·in² + 8·in·(rows of a block) more for each thread that has a block (3072 inputs: 76 MB,
    and 38 MB a thread). Columns are a single block, of all rows: 12·in² + 8·in·out. ``row_weight``
    takes a copy of w in float32 besides.

    Parameters
    ----------
    w : (out, in) float32, float16 or bfloat16
    gram : (in, in) float32 or float64, XᵀX of the inputs X (rows, in) that the matrix sees
    pattern : what a group is; a pattern or its name
    damping : above 0; what is added to the gram's diagonal, relative to its mean
    row_weight : (out,) at least 0: how much the square of an error of each output counts, such as
        the mean square of the gradient of what comes after with respect to it; default: 1

    Returns
    -------
    :class:`Removals` of ``pattern.mask_shape(w.shape)``, of w's kind. The results are the same bits
    for any number of threads.

    Raises
    ------
    ValueError (shapes, damping, NaN or infinity, a gram that is not symmetric or not positive
    semidefinite), TypeError (dtypes), MemoryError.

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> w = np.array([[1, 3, 2]], np.float32)
    >>> sp.second_order_removals(w, np.eye(3), pattern="column").order.tolist()
    [[0, 2, 1]]
    """
    op = "second_order_removals"
    return _removals(op, -1, w, gram, as_pattern(pattern), damping, row_weight)


def _masks(found: list[Removals], op: str, sparsity: float, relative: bool) -> list[Array]:
    """The masks of matrices whose blocks compete, in NumPy or in the kind that they came in."""
    prices, masks = [], []
    for r in found:
        price = to_numpy(op, "removals", r.price)
        total = float(to_numpy(op, "removals", r.cost).sum()) if relative else 1.0
        prices.append(price / total if total > 0 else np.zeros(price.shape))
        masks.append(empty(r.order, shape_of(r.order), "bool"))
        to_numpy(op, "removals", masks[-1])[...] = True
    # From the last block of the last matrix: the stable sort then prunes the later of equals first,
    # and within a block the removals stay in their order.
    every = np.concatenate([p[::-1].ravel() for p in prices[::-1]] or [np.empty(0)])
    pruned = max(0, min(math.floor(sparsity * every.size + 0.5), every.size - 1))
    cut = np.zeros(every.size, np.bool_)
    cut[np.argsort(every, kind="stable")[:pruned]] = True
    start = 0
    for r, mask, p in zip(found[::-1], masks[::-1], prices[::-1], strict=True):
        gone = cut[start : start + p.size].reshape(p.shape)[::-1]
        start += p.size
        block, step = np.nonzero(gone)
        to_numpy(op, "removals", mask)[block, to_numpy(op, "removals", r.order)[block, step]] = (
            False
        )
    return masks


def _allocate(
    op: str, found: list[Removals], sparsity: float, scope: str, relative: bool = True
) -> list[Array]:
    if scope == "global":
        return _masks(found, op, sparsity, relative)
    return [_masks([r], op, sparsity, relative=False)[0] for r in found]


def _check_choice(op: str, sparsity: Any, scope: str) -> None:
    if not isinstance(sparsity, numbers.Real):
        raise TypeError(f"{op}: sparsity is a {type(sparsity).__name__}, expected a number")
    if not 0.0 <= float(sparsity) < 1.0:
        raise ValueError(f"{op}: sparsity is {sparsity}, expected a value in [0, 1)")
    if scope not in ("matrix", "global"):
        raise ValueError(f"{op}: scope is {scope!r}, expected 'matrix' or 'global'")


def second_order_mask(
    removals: Removals | Sequence[Removals],
    *,
    sparsity: float,
    scope: Literal["matrix", "global"] = "matrix",
    relative: bool = True,
) -> Array | list[Array]:
    """Which groups go: the cheapest removals over all blocks, each block's in its own order.

    Of the n groups that compete, exactly min(floor(sparsity·n + 0.5), n − 1) go, those of the
    lowest price; of equals the earlier is kept. So one run of :func:`second_order_removals` serves
    every sparsity.

    Parameters
    ----------
    removals : of one matrix, or a list
    sparsity : in [0, 1), the fraction of groups to prune
    scope : the groups of one matrix compete, or those of all together ("global")
    relative : globally, prices count relative to each matrix's output, tr(W·H·Wᵀ), which is the sum
        of its costs; False: as they are, where row weights made costs of several matrices alike

    Returns
    -------
    bool, of the removals' shape and kind; a list of them for a list.

    Raises
    ------
    ValueError (sparsity, scope), TypeError (what are no removals).

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> w = np.array([[1, 3, 2]], np.float32)
    >>> found = sp.second_order_removals(w, np.eye(3), pattern="column")
    >>> sp.second_order_mask(found, sparsity=0.5).tolist()
    [[False, True, False]]
    """
    op = "second_order_mask"
    one = isinstance(removals, Removals)
    listed: list[Any] = [removals] if one else list(removals)
    for i, r in enumerate(listed):
        if not isinstance(r, Removals):
            raise TypeError(f"{op}: removals[{i}] is a {type(r).__name__}, expected Removals")
    _check_choice(op, sparsity, scope)
    masks = _allocate(op, listed, sparsity, scope, relative)
    return masks[0] if one else masks


def _apply(
    op: str, index: int, w: Array, gram: Array, mask: Array, pattern: Pattern, damping: float
) -> SecondOrder:
    name = "w" if index < 0 else f"w[{index}]"
    shape = matrix_shape(op, name, w)
    kind_of(op, "gram" if index < 0 else f"gram[{index}]", gram)
    kind_of(op, "mask", mask)
    pruned = empty(w, shape)
    grid = grid_of(shape, pattern)
    cost = _core.second_order_apply(op, index, w, *grid, gram, damping, mask, pruned)
    return SecondOrder(pruned, mask, cost)


def second_order_apply(
    w: Array, gram: Array, mask: Array, *, pattern: PatternLike, damping: float = 0.01
) -> SecondOrder:
    """The weights that stay under any mask, changed so that the output changes least.

    With S the columns that a block loses: w − w_S·((H⁻¹)_SS)⁻¹·(H⁻¹)_S,:. Blocks that lose nothing
    keep their bits, and so do weights whose inputs tell nothing of the lost ones. A block takes at
    most in³/24 multiply-adds. Memory: at most 20·in² bytes, or where that is more 16·in², and
    in² + 24·in·(rows of a block) for each thread that has a block. Columns are a single block, of
    all rows: 17·in² + 24·in·out.

    Parameters
    ----------
    w, gram, pattern, damping : as in :func:`second_order_removals`
    mask : bool, ``pattern.mask_shape(w.shape)``, True = keep

    Returns
    -------
    :class:`SecondOrder`: the pruned w, the mask, and the error tr(ΔW·gram·ΔWᵀ) of what is returned,
    rounding included.

    Raises
    ------
    As :func:`second_order_removals`.

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> w, gram = np.ones((1, 2), np.float32), np.ones((2, 2))
    >>> mask = np.array([[True, False]])
    >>> sp.second_order_apply(w, gram, mask, pattern="column", damping=1e-9).w.tolist()
    [[2.0, 0.0]]
    """
    return _apply("second_order_apply", -1, w, gram, mask, as_pattern(pattern), damping)


def _listed(
    op: str, w: Any, gram: Any, pattern: Any
) -> tuple[list[Array], list[Array], list[Pattern]]:
    """Matrices, grams and patterns side by side."""
    if not isinstance(w, (list, tuple)):
        if not isinstance(pattern, (str, Pattern)):
            raise TypeError(f"{op}: pattern is a list, expected one pattern for one matrix")
        return [w], [gram], [as_pattern(pattern)]
    if not isinstance(gram, (list, tuple)):
        raise TypeError(f"{op}: gram is a {type(gram).__name__}, expected a list as w is one")
    one = isinstance(pattern, (str, Pattern))
    patterns = [as_pattern(p) for p in ([pattern] * len(w) if one else pattern)]
    for name, entries in (("gram", gram), ("pattern", patterns)):
        if len(entries) != len(w):
            raise ValueError(
                f"{op}: {name} has {len(entries)} entries, expected {len(w)}, one per matrix"
            )
    return list(w), list(gram), patterns


def second_order_prune(
    w: Array | Sequence[Array],
    gram: Array | Sequence[Array],
    *,
    pattern: PatternLike | Sequence[PatternLike],
    sparsity: float,
    scope: Literal["matrix", "global"] = "matrix",
    damping: float = 0.01,
) -> SecondOrder | list[SecondOrder]:
    """Prune the groups that the outputs miss least, and let the kept weights make up for them.

    :func:`second_order_removals`, :func:`second_order_mask` and :func:`second_order_apply`, one
    after another; time is the first's, and memory that of whichever takes more.

    Parameters
    ----------
    w : (out, in) float32, float16 or bfloat16, or a list of such matrices
    gram : (in, in) float32 or float64, XᵀX of w's inputs; or a list beside a list of matrices
    pattern : what a group is; or a list of patterns beside a list of matrices
    sparsity : in [0, 1), the fraction of groups to prune
    scope : the groups of one matrix compete, or those of all matrices together ("global"), by the
        error relative to each matrix's output
    damping : above 0; what is added to the gram's diagonal, relative to its mean

    Returns
    -------
    :class:`SecondOrder` of w's kind and dtype; a list of them for a list.

    Raises
    ------
    ValueError (shapes, sparsity, scope, damping, NaN or infinity, a gram that is not symmetric or
    not positive semidefinite), TypeError (dtypes, a list beside no list), MemoryError.

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> x = np.array([[1, 1, 0], [2, 2, 1]], np.float32)  # the first two inputs are always equal
    >>> w = np.array([[1, 1, 3]], np.float32)
    >>> pruned = sp.second_order_prune(w, x.T @ x, pattern="column", sparsity=0.3, damping=1e-9)
    >>> pruned.w.round(4).tolist(), round(pruned.cost, 6)
    ([[2.0, 0.0, 3.0]], 0.0)
    """
    op = "second_order_prune"
    several = isinstance(w, (list, tuple))
    matrices, grams, patterns = _listed(op, w, gram, pattern)
    _check_choice(op, sparsity, scope)
    found = [
        _removals(op, i if several else -1, m, g, p, damping)
        for i, (m, g, p) in enumerate(zip(matrices, grams, patterns, strict=True))
    ]
    masks = _allocate(op, found, sparsity, scope)
    pruned = [
        _apply(op, i if several else -1, m, g, mask, p, damping)
        for i, (m, g, mask, p) in enumerate(zip(matrices, grams, masks, patterns, strict=True))
    ]
    return pruned if several else pruned[0]
