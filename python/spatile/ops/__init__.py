"""The ops, as users call them: see each function. Twins in float64: :mod:`spatile.reference`."""

from spatile.ops.attention import (
    AttentionGrads,
    AttentionResult,
    attention,
    attention_backward,
)
from spatile.ops.linear import LinearGrads, linear, linear_backward
from spatile.ops.sparse_matrix import SparseMatrix, pack

__all__ = [
    "AttentionGrads",
    "AttentionResult",
    "LinearGrads",
    "SparseMatrix",
    "attention",
    "attention_backward",
    "linear",
    "linear_backward",
    "pack",
]
