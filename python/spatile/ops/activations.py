"""What an encoder needs besides its products: normalisation, GELU, dropout, softmax, embedding."""

from __future__ import annotations

from typing import Literal

from spatile import _core
from spatile.ops.arrays import Array, empty, kind_of, shape_of, whole_seed

__all__ = ["dropout", "embedding", "gelu", "layer_norm", "softmax"]


def layer_norm(
    x: Array, weight: Array, bias: Array, *, eps: float = 1e-12, residual: Array | None = None
) -> Array:
    """(t − mean)/√(variance + eps)·weight + bias over the last axis of t = x + residual.

    The variance is the population's, as in Ba et al., "Layer normalization" (2016).

    Parameters
    ----------
    x : (…, n) float32, float16 or bfloat16
    weight, bias : (n,)
    eps : finite, at least 0
    residual : (…, n), optional, of x's shape

    Returns
    -------
    (…, n) of x's kind and dtype; computed in float32.

    Raises
    ------
    ValueError (shapes, eps), TypeError (dtypes).

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> x, one = np.array([[1, 3]], np.float32), np.ones(2, np.float32)
    >>> sp.layer_norm(x, one, 10 * one, eps=0.0).tolist()
    [[9.0, 11.0]]
    """
    op = "layer_norm"
    for arg, array in (("x", x), ("weight", weight), ("bias", bias)):
        kind_of(op, arg, array)
    if residual is not None:
        kind_of(op, "residual", residual)
    out = empty(x, shape_of(x))
    _core.layer_norm(x, weight, bias, residual, eps, out)
    return out


def gelu(x: Array, *, approximate: Literal["none", "tanh"] = "none") -> Array:
    """x·Φ(x), Φ the normal distribution function; or its tanh approximation.

    Source: Hendrycks and Gimpel, "Gaussian error linear units" (2016).

    Parameters
    ----------
    x : any shape, float32, float16 or bfloat16
    approximate : "none" or "tanh"

    Returns
    -------
    x's shape, kind and dtype; computed in float32.

    Raises
    ------
    ValueError (approximate), TypeError (dtype).

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> sp.gelu(np.array([0, 100], np.float32)).tolist()
    [0.0, 100.0]
    """
    op = "gelu"
    kind_of(op, "x", x)
    if approximate not in ("none", "tanh"):
        raise ValueError(f"{op}: approximate is {approximate!r}, expected 'none' or 'tanh'")
    out = empty(x, shape_of(x))
    _core.gelu(x, approximate == "tanh", out)
    return out


def dropout(x: Array, *, p: float, seed: int) -> Array:
    """Each element with the chance ``p`` as 0, else x/(1 − p), as a counter-based generator says.

    The same seed draws the same elements, whatever the number of threads: so the gradient is
    ``dropout(grad, p=p, seed=seed)``, and no mask is kept. Element n in row-major order takes word
    ⌊n/16⌋ mod 4 of Philox4x32-10 for the counter (c mod 2³², ⌊c/2³²⌋, 0, 2³² − 1) with
    c = ⌊n/64⌋·16 + n mod 16, and is kept iff that is at least ⌊p·2³²⌋.

    Parameters
    ----------
    x : any shape, float32, float16 or bfloat16
    p : in [0, 1)
    seed : 0 to 2⁶⁴ − 1

    Returns
    -------
    x's shape, kind and dtype.

    Raises
    ------
    ValueError (p, seed), TypeError (dtype, seed).

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> sp.dropout(np.ones(8, np.float32), p=0.5, seed=0).tolist()
    [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 0.0, 2.0]
    """
    op = "dropout"
    kind_of(op, "x", x)
    number = whole_seed(op, seed)
    out = empty(x, shape_of(x))
    _core.dropout(x, p, number, out)
    return out


def softmax(x: Array) -> Array:
    """exp(x)/Σexp(x) over the last axis; a row that is −inf throughout gives zeros, not NaN.

    Parameters
    ----------
    x : (…, n) float32, float16 or bfloat16

    Returns
    -------
    (…, n) of x's kind and dtype; computed in float32.

    Raises
    ------
    ValueError (no dimension), TypeError (dtype).

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> sp.softmax(np.zeros((1, 2), np.float32)).tolist()
    [[0.5, 0.5]]
    """
    kind_of("softmax", "x", x)
    out = empty(x, shape_of(x))
    _core.softmax(x, out)
    return out


def embedding(ids: Array, table: Array) -> Array:
    """The rows of ``table`` that ``ids`` name.

    Parameters
    ----------
    ids : any shape, int32 or int64, from 0 to n − 1
    table : (n, width) float32, float16 or bfloat16

    Returns
    -------
    (\\*ids.shape, width) of table's kind and dtype.

    Raises
    ------
    ValueError (shapes; an id outside the table, named with its position), TypeError (dtypes).

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> sp.embedding(np.array([1, 0]), np.array([[1, 2], [3, 4]], np.float32)).tolist()
    [[3.0, 4.0], [1.0, 2.0]]
    """
    op = "embedding"
    kind_of(op, "ids", ids)
    kind_of(op, "table", table)
    shape = shape_of(table)
    if len(shape) != 2:
        raise ValueError(f"{op}: table has {len(shape)} dimensions, expected 2")
    rows = empty(table, (*shape_of(ids), shape[1]))
    _core.embedding(ids, table, rows)
    return rows
