"""`select_tokens` and `gather_tokens`: which tokens stay, and their rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from spatile import _core
from spatile.ops.arrays import Array, empty, kind_of, shape_of, to_numpy
from spatile.ops.topk import whole_numbers

__all__ = ["SelectedTokens", "gather_tokens", "select_tokens"]


class SelectedTokens(NamedTuple):
    """``index`` (k,) int64 of the tokens kept, ``offsets`` (b + 1,) int64 of their sequences."""

    index: Array
    offsets: np.ndarray[Any, Any]


def _check_offsets(op: str, offsets: Any) -> np.ndarray[Any, Any]:
    ends = whole_numbers(op, "offsets", offsets)
    if ends.ndim != 1 or len(ends) < 1:
        raise ValueError(
            f"{op}: offsets.shape is {ends.shape}, expected one dimension, of the first and the "
            f"last token at least"
        )
    if ends[0] != 0:
        raise ValueError(f"{op}: offsets[0] is {ends[0]}, expected 0")
    falls = np.nonzero(np.diff(ends) < 0)[0]
    if len(falls):
        i = int(falls[0]) + 1
        raise ValueError(f"{op}: offsets[{i}] is {ends[i]}, expected at least {ends[i - 1]}")
    return ends


def protected_mask(op: str, protect: Any, offsets: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(t,) bool from what a caller gave: such a mask, or positions in every sequence.

    Negative positions count from the end; a sequence without tokens has none to protect. Raises
    ValueError for a position that a sequence does not have, TypeError for other dtypes.
    """
    t = int(offsets[-1])
    given = to_numpy(op, "protect", protect) if hasattr(protect, "shape") else np.asarray(protect)
    if given.dtype == bool:
        if given.shape != (t,):
            raise ValueError(f"{op}: protect.shape is {given.shape}, expected ({t},)")
        return np.array(given)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise TypeError(
            f"{op}: protect is {given.ndim}-D {given.dtype}, expected a bool for each token or a "
            f"list of positions"
        )
    lengths = np.diff(offsets)
    mask = np.zeros(t, bool)
    some = np.nonzero(lengths)[0]
    for position in given.tolist():
        short = some[(position >= lengths[some]) | (position < -lengths[some])]
        if len(short):
            i = int(short[0])
            raise ValueError(
                f"{op}: protect holds position {position}, sequence {i} has {lengths[i]} tokens"
            )
        mask[offsets[some] + (position if position >= 0 else lengths[some] + position)] = True
    return mask


def kept_count(keep: Any, of: Any) -> np.ndarray[Any, Any]:
    """``keep`` (fractions in (0, 1]) of ``of``, half rounded up: at least one, where there is one.

    The two are broadcast against each other; int64.

    >>> kept_count(0.5, [0, 1, 2, 3, 4]).tolist()
    [0, 1, 1, 2, 2]
    """
    whole = np.asarray(of, np.int64)
    rounded = np.floor(np.asarray(keep, np.float64) * whole + 0.5).astype(np.int64)
    return np.asarray(np.minimum(whole, np.maximum(1, rounded)))


def _fractions(op: str, keep: Any, n_sequences: int) -> np.ndarray[Any, Any]:
    given = np.asarray(keep)
    if given.dtype.kind in "bcmMOSU":  # what is left is numbers, bfloat16 too
        raise TypeError(f"{op}: keep is {keep!r}, expected a fraction in (0, 1] or several")
    fractions = given.astype(np.float64)
    if fractions.ndim > 1 or fractions.size not in (1, n_sequences):
        raise ValueError(f"{op}: keep.shape is {fractions.shape}, expected one or {n_sequences}")
    wrong = fractions[~((fractions > 0.0) & (fractions <= 1.0))]  # NaN too
    if wrong.size:
        raise ValueError(f"{op}: keep is {wrong.flat[0]:g}, expected a fraction in (0, 1]")
    return fractions


def select_tokens(
    importance: Array,
    keep: float | Array,
    *,
    offsets: Array,
    protect: Array | None = None,
    lengths: Array | None = None,
) -> SelectedTokens:
    """The most important tokens of each packed sequence, in their original order.

    Of n tokens floor(keep·n + 1/2) stay, at least one where there is one and at least those that
    are protected; of equals the first. Source: SpAtten (HPCA 2021), cascade token pruning.

    Parameters
    ----------
    importance : (t,) float32, float16 or bfloat16, as ``sp.attention`` returns it for packed
        tokens, summed over the layers so far
    keep : a fraction in (0, 1], or (b,) of them
    offsets : (b + 1,) integers from 0 to t: sequence i is importance[offsets[i]:offsets[i + 1]]
    protect : (t,) bool; or positions to protect in every sequence, negative ones counted from its
        end; default: its first token, [CLS]
    lengths : (b,) integers: what ``keep`` is a fraction of, where tokens have gone before; default:
        the sequences' own lengths

    Returns
    -------
    SelectedTokens: ``index`` int64 into ``importance``, of its kind, sequence after sequence, and
    ``offsets`` int64 of the sequences in it.

    Raises
    ------
    ValueError (shapes, offsets, NaN, keep outside (0, 1], a protected position that a sequence does
    not have), TypeError (dtypes).

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> importance = np.array([0.1, 3, 1, 2, 9, 5], np.float32)
    >>> sp.select_tokens(importance, 0.5, offsets=np.array([0, 4, 6]))
    SelectedTokens(index=array([0, 1, 4]), offsets=array([0, 2, 3]))
    """
    op = "select_tokens"
    kind_of(op, "importance", importance)
    ends = _check_offsets(op, offsets)
    shape = shape_of(importance)
    if shape != (int(ends[-1]),):
        raise ValueError(f"{op}: importance.shape is {shape}, expected ({int(ends[-1])},)")
    own = np.diff(ends)
    of = own if lengths is None else whole_numbers(op, "lengths", lengths)
    if of.shape != own.shape or (of < own).any():
        raise ValueError(
            f"{op}: lengths is {of.tolist()}, expected {len(own)} that are at least the sequences'"
        )
    counts = np.minimum(own, kept_count(_fractions(op, keep, len(own)), of))
    mask = None
    if protect is not None:
        mask = protected_mask(op, protect, ends)
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(mask)])
        counts = np.maximum(counts, sums[ends[1:]] - sums[ends[:-1]])
    index = empty(importance, (int(counts.sum()),), "int64")
    _core.select_tokens(importance, counts, ends, mask, index)
    return SelectedTokens(index, np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]))


def gather_tokens(x: Array, index: Array) -> Array:
    """The rows of packed tokens that ``index`` names, in its order.

    Parameters
    ----------
    x : (t, …) float32, float16 or bfloat16
    index : (k,) int32 or int64, from 0 to t − 1

    Returns
    -------
    (k, …) of x's kind and dtype.

    Raises
    ------
    ValueError (shapes; an index outside x, named with its position), TypeError (dtypes).

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> sp.gather_tokens(np.array([[1, 2], [3, 4], [5, 6]], np.float32), np.array([0, 2])).tolist()
    [[1.0, 2.0], [5.0, 6.0]]
    """
    op = "gather_tokens"
    kind_of(op, "x", x)
    kind_of(op, "index", index)
    shape, picked = shape_of(x), shape_of(index)
    if not shape:
        raise ValueError(f"{op}: x has 0 dimensions, expected at least 1")
    if len(picked) != 1:
        raise ValueError(f"{op}: index has {len(picked)} dimensions, expected 1")
    out = empty(x, (picked[0], *shape[1:]))
    width = int(np.prod(shape[1:]))
    _core.gather_tokens(x.reshape((shape[0], width)), index, out.reshape((picked[0], width)))
    return out
