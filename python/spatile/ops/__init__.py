"""The ops, as users call them: see each function. Twins in float64: :mod:`spatile.reference`."""

from spatile.ops.linear import LinearGrads, linear, linear_backward
from spatile.ops.sparse_matrix import SparseMatrix, pack

__all__ = [
    "LinearGrads",
    "SparseMatrix",
    "linear",
    "linear_backward",
    "pack",
]
