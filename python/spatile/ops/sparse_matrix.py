"""`pack`: a pruned matrix in the form that the products execute, and `SparseMatrix`, that form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spatile import _core
from spatile.device import gpu_number
from spatile.ops.arrays import Array, to_numpy
from spatile.ops.masks import expand_mask
from spatile.patterns import Element, Pattern, PatternLike, as_pattern

__all__ = ["SparseMatrix", "pack"]

STRIP = 16


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    """A pruned weight matrix (out, in), packed: what :func:`spatile.linear` multiplies with.

    Two forms. *Strips*: 16 output rows share runs of neighbouring input columns; ``values`` is
    (kept columns over all strips, 16). Tiles, heads, rows, columns and dense matrices are strips.
    *CSR* for single elements: ``values`` is (nnz,). Make one with :func:`spatile.pack`.

    Attributes
    ----------
    shape : (out, in)
    pattern : the pattern that it was pruned by
    nnz : weights that belong to kept groups
    values : the packed weights, padding rows zero, on the host; float32 and writable, or read-only
        in 16 bits and for a GPU
    index : the index arrays of the form, read-only
    device : "cpu", or the GPU where products with it run, on arrays there; see :meth:`to`
    """

    shape: tuple[int, int]
    pattern: Pattern
    nnz: int
    values: np.ndarray[Any, Any] = field(repr=False)
    index: dict[str, np.ndarray[Any, Any] | None] = field(repr=False)
    device: str = "cpu"
    _capsule: object = field(init=False, repr=False)

    def __post_init__(self) -> None:
        number = gpu_number("SparseMatrix", self.device)
        gpu = -1 if number is None else number
        for array in self.index.values():
            if array is not None:
                array.setflags(write=False)
        i, values = self.index, self.values
        if self.dtype != "float32" or gpu >= 0:
            # The core keeps another form of them, so nobody else may hold this memory.
            values = values.copy()
            values.setflags(write=False)
            object.__setattr__(self, "values", values)
        if self.is_csr:
            capsule = _core.csr(*self.shape, i["row_ptr"], i["col"], values, gpu)
        else:
            if self.dtype != "float32":
                values = values.view(np.uint16)
            capsule = _core.strips(
                *self.shape, i["run_ptr"], i["value_ptr"], i["run_start"], i["run_len"],
                values, i["rows"], self.dtype, gpu,
            )  # fmt: skip
        object.__setattr__(self, "_capsule", capsule)

    def to(self, device: str) -> SparseMatrix:
        """The same matrix for products on another device: "cpu", "cuda" or "cuda:N".

        On a GPU the weights are put into the form that its products read once, at the first of
        them, and stay there; ``values``, on the host, are then read-only. Raises RuntimeError where
        there is no GPU, ValueError for one that is not there.
        """
        number = gpu_number("SparseMatrix.to", device)
        name = "cpu" if number is None else f"cuda:{number}"
        if name == self.device:
            return self
        if number is not None and number >= (count := _core.gpu_count()):
            raise ValueError(f"SparseMatrix.to: there is no {name}, expected 0 to {count - 1}")
        values = self.values if self.values.flags.writeable else self.values.copy()
        return SparseMatrix(self.shape, self.pattern, self.nnz, values, self.index, name)

    @property
    def dtype(self) -> str:
        """What the weights are stored in: "float32", "float16" or "bfloat16"."""
        return str(self.values.dtype)

    @property
    def is_csr(self) -> bool:
        """Whether the form is compressed sparse rows (single elements)."""
        return "col" in self.index

    @property
    def sparsity(self) -> float:
        """The fraction of weights removed."""
        total = self.shape[0] * self.shape[1]
        return 1.0 - self.nnz / total if total else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights and their index."""
        index = (a for name, a in self.index.items() if name != "kept" and a is not None)
        return self.values.nbytes + sum(a.nbytes for a in index)

    def _positions(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Row and column of every entry of ``values``; row −1 for padding."""
        i = self.index
        if self.is_csr:
            row_ptr, col = i["row_ptr"], i["col"]
            assert row_ptr is not None and col is not None
            return np.repeat(np.arange(self.shape[0]), np.diff(row_ptr)), col
        value_ptr, start, length, rows = (
            i["value_ptr"], i["run_start"], i["run_len"], i["rows"],
        )  # fmt: skip
        assert value_ptr is not None and start is not None and length is not None
        n_strips = len(value_ptr) - 1
        if rows is None:
            rows = np.arange(n_strips * STRIP)
            rows = np.where(rows < self.shape[0], rows, -1)
        per_column = rows.reshape(n_strips, STRIP)[
            np.repeat(np.arange(n_strips), np.diff(value_ptr))
        ]
        total = int(length.sum())
        within = np.arange(total) - np.repeat(np.cumsum(length) - length, length)
        columns = np.repeat(start, length) + within
        return per_column, np.broadcast_to(columns[:, None], per_column.shape)

    def to_dense(self) -> np.ndarray[Any, Any]:
        """The matrix as a float32 array (out, in), zeros where pruned."""
        dense = np.zeros(self.shape, np.float32)
        rows, columns = self._positions()
        real = rows >= 0
        dense[rows[real], columns[real]] = self.values[real]
        return dense

    def _repr_html_(self) -> str:
        rows, columns = self._positions()
        real = rows >= 0
        size = 96
        grid = np.zeros((min(size, max(1, self.shape[0])), min(size, max(1, self.shape[1]))))
        r = rows[real] * grid.shape[0] // max(1, self.shape[0])
        c = columns[real] * grid.shape[1] // max(1, self.shape[1])
        np.add.at(grid, (r, c), 1.0)
        per_cell = max(1.0, self.shape[0] * self.shape[1] / grid.size)
        cells = "".join(
            f'<rect x="{x}" y="{y}" width="1" height="1" '
            f'fill-opacity="{min(1.0, v / per_cell):.2f}"/>'
            for (y, x), v in np.ndenumerate(grid)
            if v
        )
        return (
            f"<div><code>{self.shape[0]} × {self.shape[1]}, {self.pattern}, "
            f"{self.sparsity:.1%} pruned, {self.nbytes / 1024:.0f} KiB</code><br>"
            f'<svg width="{3 * grid.shape[1]}" height="{3 * grid.shape[0]}" '
            f'viewBox="0 0 {grid.shape[1]} {grid.shape[0]}" shape-rendering="crispEdges" '
            f'style="border:1px solid #888">{cells}</svg></div>'
        )


def _check(w: np.ndarray[Any, Any], mask: np.ndarray[Any, Any] | None, pattern: Pattern) -> None:
    if w.ndim != 2:
        raise ValueError(f"pack: w has {w.ndim} dimensions, expected 2")
    if w.dtype.name not in ("float32", "float16", "bfloat16"):
        raise TypeError(f"pack: w.dtype is {w.dtype}, expected float32, float16 or bfloat16")
    if max(w.shape) > np.iinfo(np.int32).max - STRIP:
        raise ValueError(f"pack: w.shape is {w.shape}, expected sides below 2**31")
    if mask is None:
        return
    if mask.dtype != np.bool_:
        raise TypeError(f"pack: mask.dtype is {mask.dtype}, expected bool")
    expected = pattern.mask_shape((w.shape[0], w.shape[1]))
    if mask.shape != expected:
        raise ValueError(f"pack: mask.shape is {mask.shape}, expected {expected} for {pattern}")


def csr_form(w: np.ndarray[Any, Any], keep: np.ndarray[Any, Any]) -> dict[str, Any]:
    """``values`` and ``index`` of compressed sparse rows, from weights and a mask of elements."""
    counts = keep.sum(axis=1, dtype=np.int64)
    row_ptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    col = np.nonzero(keep)[1].astype(np.int32)
    return {"values": w[keep], "index": {"row_ptr": row_ptr, "col": col}}


def strips_form(w: np.ndarray[Any, Any], keep: np.ndarray[Any, Any]) -> dict[str, Any]:
    """``values`` and ``index`` of strips, from weights and a mask of elements.

    Rows that keep anything come first; the others follow, in strips without a run where whole.
    """
    out, width = w.shape
    alive = keep.any(axis=1)
    rows = None
    if not alive.all():
        order = np.concatenate([np.nonzero(alive)[0], np.nonzero(~alive)[0]])
        rows = np.full(-(-out // STRIP) * STRIP, -1, np.int32)
        rows[:out] = order
        w, keep = w[order], keep[order]
    n_strips = -(-out // STRIP)
    padded = np.zeros((n_strips * STRIP, width), np.float32)
    padded[:out] = np.where(keep, w, np.float32(0))
    wanted = np.zeros((n_strips * STRIP, width), bool)
    wanted[:out] = keep
    columns = wanted.reshape(n_strips, STRIP, width).any(axis=1)
    values = np.ascontiguousarray(
        padded.reshape(n_strips, STRIP, width).transpose(0, 2, 1)[columns], np.float32
    )
    kept = wanted.reshape(n_strips, STRIP, width).transpose(0, 2, 1)[columns]
    stored = np.repeat(
        np.arange(n_strips * STRIP).reshape(n_strips, STRIP) < out, columns.sum(1), 0
    )
    edges = np.zeros((n_strips, width + 2), np.int8)
    edges[:, 1:-1] = columns
    step = np.diff(edges, axis=1)
    strip_of, run_start = np.nonzero(step == 1)
    run_end = np.nonzero(step == -1)[1]
    run_ptr = np.concatenate([[0], np.cumsum(np.bincount(strip_of, minlength=n_strips))])
    value_ptr = np.concatenate([[0], np.cumsum(columns.sum(axis=1))])
    return {
        "values": values,
        "index": {
            "run_ptr": run_ptr.astype(np.int64),
            "value_ptr": value_ptr.astype(np.int64),
            "run_start": run_start.astype(np.int32),
            "run_len": (run_end - run_start).astype(np.int32),
            "rows": rows,
            # Which stored weights belong to kept groups, where some do not: a column is stored for
            # all 16 rows of its strip.
            "kept": None if kept[stored].all() else np.ascontiguousarray(kept),
        },
    }


def pack(
    w: Array, mask: Array | None = None, *, pattern: PatternLike = "tile", dtype: str | None = None
) -> SparseMatrix:
    """Pack a matrix for execution, keeping only the groups that ``mask`` keeps.

    Parameters
    ----------
    w : (out, in) float32, float16 or bfloat16
        Weights; what lies outside kept groups is dropped whatever its value.
    mask : bool, ``pattern.mask_shape(w.shape)``, optional
        True = keep, from :func:`spatile.prune_mask`. None packs the matrix dense.
    pattern : what the mask's entries stand for.
    dtype : storage of the packed weights: ``"float32"`` (None too), ``"float16"`` or
        ``"bfloat16"``, which needs ml_dtypes. Products widen them, but for those in bfloat16.

    Raises
    ------
    ValueError, TypeError
        Shapes or dtypes that disagree. NotImplementedError for single elements in 16 bits.

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> w = np.ones((32, 32), np.float32)
    >>> sp.pack(w, np.array([[True, False], [False, True]])).sparsity
    0.5
    """
    pattern = as_pattern(pattern)
    if dtype not in (None, "float32", "float16", "bfloat16"):
        raise ValueError(f"pack: dtype is {dtype!r}, expected 'float32', 'float16' or 'bfloat16'")
    irregular = isinstance(pattern, Element) and mask is not None
    if irregular and dtype not in (None, "float32"):
        raise NotImplementedError(
            f"pack: dtype is {dtype!r}, expected 'float32' for single elements"
        )
    dense = to_numpy("pack", "w", w)
    kept = None if mask is None else to_numpy("pack", "mask", mask)
    _check(dense, kept, pattern)
    shape = (dense.shape[0], dense.shape[1])
    keep = np.ones(shape, bool) if kept is None else expand_mask(kept, shape, pattern=pattern)
    dense = dense.astype(np.float32, copy=False)
    form = (csr_form if irregular else strips_form)(dense, keep)
    if dtype == "float16":
        form["values"] = form["values"].astype(np.float16)
    elif dtype == "bfloat16":
        import ml_dtypes

        form["values"] = form["values"].astype(ml_dtypes.bfloat16)
    return SparseMatrix(shape=shape, pattern=pattern, nnz=int(keep.sum()), **form)
