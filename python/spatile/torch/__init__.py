"""Training with PyTorch and Hugging Face: pruning, differentiable ops, the attention back-end.

Importing this registers ``attn_implementation="spatile"`` with transformers, where installed.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from spatile.sparsity import Plan, Stages
from spatile.torch.distillation import (
    QueriesAndKeys,
    attention_loss,
    distillation_loss,
    hidden_loss,
)
from spatile.torch.functional import attention, dropout, linear
from spatile.torch.layers import Dropout, Linear, restore_layers, swap_layers
from spatile.torch.pruner import Pruner
from spatile.torch.sparse_linear import SparseLinear, densify, sparsify
from spatile.torch.structure import apply_structure, structure_of
from spatile.torch.structure_pruning import choose_structure, prune_structure

__all__ = [
    "Dropout",
    "HeadPruning",
    "Linear",
    "Plan",
    "Pruner",
    "PruningCallback",
    "QueriesAndKeys",
    "SparseLinear",
    "Stages",
    "TokenPruning",
    "apply_structure",
    "attention",
    "attention_loss",
    "choose_structure",
    "densify",
    "distillation_loss",
    "dropout",
    "hidden_loss",
    "last_checkpoint",
    "linear",
    "prune_structure",
    "register",
    "restore_layers",
    "sparsify",
    "structure_of",
    "swap_layers",
]

if TYPE_CHECKING or find_spec("transformers") is not None:
    from spatile.torch.callback import PruningCallback
    from spatile.torch.checkpoint import last_checkpoint
    from spatile.torch.head_pruning import HeadPruning
    from spatile.torch.huggingface import register
    from spatile.torch.token_pruning import TokenPruning

    register()
