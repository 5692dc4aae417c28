"""The ops, as users call them: see each function. Twins in float64: :mod:`spatile.reference`."""

from spatile.ops.activations import dropout, embedding, gelu, layer_norm, softmax
from spatile.ops.attention import (
    AttentionGrads,
    AttentionResult,
    attention,
    attention_backward,
)
from spatile.ops.groups import (
    add_group_lasso_grad_,
    group_beta,
    group_lasso,
    group_lasso_grad,
    group_norms,
    group_shrink_,
)
from spatile.ops.linear import LinearGrads, linear, linear_backward
from spatile.ops.masks import apply_mask_, expand_mask, prune_mask
from spatile.ops.second_order import (
    Removals,
    SecondOrder,
    second_order_apply,
    second_order_mask,
    second_order_prune,
    second_order_removals,
)
from spatile.ops.sparse_matrix import SparseMatrix, pack
from spatile.ops.tokens import SelectedTokens, gather_tokens, select_tokens
from spatile.ops.topk import TopK, topk

__all__ = [
    "AttentionGrads",
    "AttentionResult",
    "LinearGrads",
    "Removals",
    "SecondOrder",
    "SelectedTokens",
    "SparseMatrix",
    "TopK",
    "add_group_lasso_grad_",
    "apply_mask_",
    "attention",
    "attention_backward",
    "dropout",
    "embedding",
    "expand_mask",
    "gather_tokens",
    "gelu",
    "group_beta",
    "group_lasso",
    "group_lasso_grad",
    "group_norms",
    "group_shrink_",
    "layer_norm",
    "linear",
    "linear_backward",
    "pack",
    "prune_mask",
    "second_order_apply",
    "second_order_mask",
    "second_order_prune",
    "second_order_removals",
    "select_tokens",
    "softmax",
    "topk",
]
