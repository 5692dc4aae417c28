"""`linear` and `linear_backward`: products with dense and packed weights."""

from __future__ import annotations

from typing import NamedTuple

from spatile import _core
from spatile.ops.arrays import Array, check_out, empty, gpu_of, kind_of, overlap, shape_of
from spatile.ops.sparse_matrix import SparseMatrix

__all__ = ["LinearGrads", "linear", "linear_backward"]

ACTIVATIONS = {None: 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "tanh": 4}


class LinearGrads(NamedTuple):
    """Gradients of ``y = x · wᵀ + bias``; None where not asked for."""

    x: Array | None
    w: Array | None
    bias: Array | None


def _rows(op: str, arg: str, x: Array, width: int) -> Array:
    """(…, width) as (n, width), a view where the strides allow it."""
    shape = shape_of(x)
    if len(shape) < 1:
        raise ValueError(f"{op}: {arg} has 0 dimensions, expected at least 1")
    if shape[-1] != width:
        raise ValueError(f"{op}: {arg}.shape[{len(shape) - 1}] is {shape[-1]}, expected {width}")
    if len(shape) == 2:
        return x
    count = 1
    for n in shape[:-1]:
        count *= n
    return x.reshape((count, width))


def _weight(op: str, w: Array | SparseMatrix) -> tuple[object, tuple[int, int]]:
    if isinstance(w, SparseMatrix):
        return w._capsule, w.shape
    kind_of(op, "w", w)
    shape = shape_of(w)
    if len(shape) != 2:
        raise ValueError(f"{op}: w has {len(shape)} dimensions, expected 2")
    return w, (shape[0], shape[1])


def linear(
    x: Array,
    w: Array | SparseMatrix,
    *,
    bias: Array | None = None,
    activation: str | None = None,
    residual: Array | None = None,
    compute: str | None = None,
    out: Array | None = None,
) -> Array:
    """``activation(x · wᵀ + bias) + residual``, skipping what a packed ``w`` has pruned.

    Parameters
    ----------
    x : (…, in) float32, float16 or bfloat16
    w : (out, in) array, or a :class:`SparseMatrix` from :func:`spatile.pack`
    bias : (out,), optional
    activation : None, "gelu", "gelu_tanh", "relu" or "tanh"
    residual : (…, out), optional, added last
    compute : "float32", or "bfloat16": x and w are rounded to it, sums are float32. None is the
        type that loses nothing: bfloat16 where x and w both are and the processor multiplies it.
        Single elements (CSR) are multiplied in float32 always. In bfloat16 columns go in pairs, by
        sixteens with AMX: a pruned one beside a kept one meets a zero weight, so it must be finite.
    out : (…, out), optional, written and returned

    Returns
    -------
    (…, out) of x's kind and dtype; sums are float32.

    Raises
    ------
    ValueError (shapes, names), TypeError (dtypes).

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> x, w = np.ones((2, 32), np.float32), np.eye(32, dtype=np.float32)
    >>> bool((sp.linear(x, sp.pack(w)) == x).all())
    True
    """
    op = "linear"
    kind_of(op, "x", x)
    if activation not in ACTIVATIONS:
        names = ", ".join(repr(a) for a in ACTIVATIONS)
        raise ValueError(f"{op}: activation is {activation!r}, expected one of {names}")
    if compute not in (None, "float32", "bfloat16"):
        raise ValueError(f"{op}: compute is {compute!r}, expected None, 'float32' or 'bfloat16'")
    weight, (width_out, width_in) = _weight(op, w)
    rows = _rows(op, "x", x, width_in)
    shape = (*shape_of(x)[:-1], width_out)
    extra = None
    if residual is not None:
        kind_of(op, "residual", residual)
        if shape_of(residual) != shape:
            raise ValueError(f"{op}: residual.shape is {shape_of(residual)}, expected {shape}")
        extra = _rows(op, "residual", residual, width_out)
    if bias is not None:
        kind_of(op, "bias", bias)
    result = empty(x, shape) if out is None else None
    if out is not None:
        inputs = {"x": x, "bias": bias, "residual": residual}
        if not isinstance(w, SparseMatrix):
            inputs["w"] = w
        result = check_out(op, out, x, shape, inputs)
    target = _rows(op, "out", result, width_out)
    if compute is None and _is_bf16(x) and _is_bf16(w):
        native = gpu_of(x) is not None or _core.bf16_is_native()
        compute = "bfloat16" if native else "float32"
    _core.linear(rows, weight, target, bias, extra, ACTIVATIONS[activation], compute == "bfloat16")
    if out is not None and not overlap(op, "out", target, out):
        out[...] = target.reshape(shape)  # out's strides could not be flattened into rows
    return result


def _is_bf16(x: Array | SparseMatrix) -> bool:
    return str(x.dtype).endswith("bfloat16")


def linear_backward(
    grad: Array,
    x: Array,
    w: Array | SparseMatrix,
    *,
    need: tuple[str, ...] = ("x", "w", "bias"),
) -> LinearGrads:
    """Gradients of ``y = x · wᵀ + bias`` given ``grad`` = ∂loss/∂y.

    Parameters
    ----------
    grad : (…, out); x : (…, in); w : (out, in) array or SparseMatrix
    need : which of "x", "w", "bias" to compute

    Returns
    -------
    LinearGrads: ``x`` like x, ``w`` like w (for a SparseMatrix: float32 in the layout of its
    ``values``, so pruned groups cost nothing), ``bias`` (out,) of grad's dtype.

    Raises
    ------
    ValueError (shapes, names), TypeError (dtypes).

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> g, x = np.ones((4, 16), np.float32), np.ones((4, 32), np.float32)
    >>> float(sp.linear_backward(g, x, np.zeros((16, 32), np.float32)).w[0, 0])
    4.0
    """
    op = "linear_backward"
    kind_of(op, "grad", grad)
    kind_of(op, "x", x)
    unknown = set(need) - {"x", "w", "bias"}
    if unknown:
        raise ValueError(f"{op}: need has {sorted(unknown)}, expected any of 'x', 'w', 'bias'")
    weight, (width_out, width_in) = _weight(op, w)
    if shape_of(grad)[:-1] != shape_of(x)[:-1]:
        raise ValueError(
            f"{op}: grad.shape is {shape_of(grad)}, expected {(*shape_of(x)[:-1], width_out)}"
        )
    grad_rows, x_rows = _rows(op, "grad", grad, width_out), _rows(op, "x", x, width_in)
    dx = empty(x, shape_of(x)) if "x" in need else None
    dw: Array | None = None
    if "w" in need:
        if isinstance(w, SparseMatrix):
            dw = empty(x, w.values.shape, "float32")
        else:
            dw = empty(w, (width_out, width_in))
    db = empty(grad, (width_out,)) if "bias" in need else None
    dx_rows = None if dx is None else _rows(op, "dx", dx, width_in)
    _core.linear_backward(grad_rows, x_rows, weight, dx_rows, dw, db, False)
    kept = w.index.get("kept") if isinstance(w, SparseMatrix) else None
    if dw is not None and kept is not None:
        gpu = gpu_of(dw)
        mask = kept if gpu is None else _core.to_device(kept, gpu)
        _core.apply_mask(dw, 1, 1, mask)
    return LinearGrads(dx, dw, db)
