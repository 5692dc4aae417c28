"""Small random models of each family, saved as Hugging Face saves them, with a real tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from spatile.sparsity import Plan, match

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "mat",
    "road",
    "it",
    "was",
    "not",
    "very",
    "good",
    "bad",
    ".",
]
TEXTS = ["The cat sat on the mat.", "It ran.", "A dog was not very good. " * 7, "bad"]
PAIRS = ["It sat.", "The dog ran on the road.", "good", "The cat was very bad."]


def write_tokenizer(folder: Path, words: Sequence[str] = WORDS) -> None:
    """WordPiece over ``words``, without regard to case."""
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def make_model(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if family == "bert":
        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=40, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
                intermediate_size=128, max_position_embeddings=96, num_labels=3,
            )
        )  # fmt: skip
    elif family == "distilbert":
        model = DistilBertForSequenceClassification(
            DistilBertConfig(
                vocab_size=40, dim=48, n_layers=2, n_heads=3, hidden_dim=80,
                max_position_embeddings=96, num_labels=2,
            )
        )  # fmt: skip
    else:
        model = RobertaForSequenceClassification(
            RobertaConfig(
                vocab_size=40, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
                intermediate_size=96, max_position_embeddings=98, type_vocab_size=1,
                num_labels=1, problem_type="regression",
            )
        )  # fmt: skip
    # Fresh biases are zero and LayerNorms one, which would hide a bias that is lost on the way.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def prune(model: PreTrainedModel, plan: Plan, seed: int = 0) -> None:
    """Zero random groups of every planned matrix, in place."""
    rng = np.random.default_rng(seed)
    state = model.state_dict()
    for m in match(plan, {n: tuple(p.shape) for n, p in state.items()}):
        mask = rng.random(m.mask_shape) >= m.sparsity
        rows, cols = m.pattern.group_shape(m.shape)
        keep = mask.repeat(rows, 0).repeat(cols, 1)[: m.shape[0], : m.shape[1]]
        state[m.parameter].mul_(torch.from_numpy(keep))


def plans(model: PreTrainedModel) -> dict[str, Plan]:
    """One plan of each kind."""
    width = model.config.hidden_size // model.config.num_attention_heads
    return {
        "tile": Plan.uniform("tile", 0.8),
        "tile of other size": Plan.uniform("tile:8x24", 0.5),
        "row": Plan.uniform("row", 0.5),
        "column": Plan.uniform("column", 0.5),
        "element, sparse": Plan.uniform("element", 0.9),
        "element, dense": Plan.uniform("element", 0.3),
        "head": Plan.uniform(f"head:{width}", 0.5, targets=[r"re:\.(query|key|value|[qkv]_lin)$"]),
        "attention-aware": Plan.attention_aware(model.config, 0.7, precompute=False),
        "merged": Plan.attention_aware(model.config, 0.7, precompute=True),
    }


def torch_logits(
    model: PreTrainedModel, ids: list[list[int]], types: list[list[int]]
) -> np.ndarray:
    rows = []
    with torch.no_grad():
        for i, t in zip(ids, types, strict=True):
            extra = (
                {} if model.config.model_type != "bert" else {"token_type_ids": torch.tensor([t])}
            )
            rows.append(model(torch.tensor([i]), **extra).logits[0].numpy())
    return np.stack(rows)


@pytest.fixture(params=["bert", "distilbert", "roberta"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)
