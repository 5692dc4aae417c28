"""Every op in plain float64 NumPy: what the fast ops mean, and what their tests compare with.

The names and the arguments are those of ``spatile``; the results are float64 NumPy arrays whatever
comes in, boolean or int64 where the op says so. Nothing here is fast, nothing is clever, and only
what defines an op's meaning is checked: shapes that disagree raise NumPy's own errors.
"""

from __future__ import annotations

from .activations import dropout, embedding, gelu, layer_norm, softmax
from .attention import AttentionResult, attention
from .attention_backward import AttentionGrads, attention_backward
from .groups import (
    add_group_lasso_grad_,
    group_beta,
    group_lasso,
    group_lasso_grad,
    group_norms,
    group_shrink_,
)
from .linear import LinearGrads, linear, linear_backward
from .masks import apply_mask_, expand_mask, pack, prune_mask
from .philox import dropout_keep, philox4x32
from .second_order import (
    Removals,
    SecondOrder,
    second_order_apply,
    second_order_mask,
    second_order_prune,
    second_order_removals,
)
from .tokens import SelectedTokens, gather_tokens, select_tokens
from .topk import TopK, topk

__all__ = [
    "AttentionGrads",
    "AttentionResult",
    "LinearGrads",
    "Removals",
    "SecondOrder",
    "SelectedTokens",
    "TopK",
    "add_group_lasso_grad_",
    "apply_mask_",
    "attention",
    "attention_backward",
    "dropout",
    "dropout_keep",
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
    "philox4x32",
    "prune_mask",
    "second_order_apply",
    "second_order_mask",
    "second_order_prune",
    "second_order_removals",
    "select_tokens",
    "softmax",
    "topk",
]
