"""Models, inputs and comparisons for the tests of token and head pruning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from spatile.inference import Encoder
from spatile.sparsity import Plan, Schedule
from spatile.torch import HeadPruning, TokenPruning

FAMILIES = ["bert", "distilbert", "roberta"]
TOKENS, HEADS = Schedule.per_layer([1, 0.6, 0.3]), Schedule.per_layer([1, 0.75, 0.5])
LENGTHS = [23, 4, 40, 1, 31]


def make_model(family: str, seed: int = 0, **changes: Any) -> Any:
    """Three layers of four heads, with biases and LayerNorms that are not the identity."""
    torch.manual_seed(seed)
    if family == "distilbert":
        config: Any = transformers.DistilBertConfig(
            vocab_size=50, dim=64, n_layers=3, n_heads=4, hidden_dim=96, max_position_embeddings=64,
            num_labels=2, **changes,
        )  # fmt: skip
        model = transformers.DistilBertForSequenceClassification(config)
    else:
        kind = {"bert": "Bert", "roberta": "Roberta"}[family]
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=50, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
            intermediate_size=96, max_position_embeddings=66, num_labels=2, **changes,
        )  # fmt: skip
        model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def make_ids(lengths: list[int] = LENGTHS, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(4, 50, n).tolist() for n in lengths]


def padded(ids: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, ids))
    return {
        "input_ids": torch.tensor([row + [1] * (width - len(row)) for row in ids]),
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in ids]),
    }


def pruned(model: Any, tokens: Any = TOKENS, heads: Any = HEADS, **options: Any) -> Any:
    """Both attached to the model."""
    if heads is not None:
        HeadPruning(heads).attach(model)
    return TokenPruning(tokens, **options).attach(model)


def assert_same_kept(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(found.counts, expected.counts)
    np.testing.assert_array_equal(found.heads, expected.heads)
    for mine, theirs in zip(found.tokens, expected.tokens, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def assert_as_the_engine(model: Any, folder: Path, plan: Plan | None = None, **options: Any) -> Any:
    """Kept indices and hidden states are the packed model's; returns what was kept."""
    model.save_pretrained(folder)
    encoder = Encoder.load(folder, plan=plan, tokens=TOKENS, heads=HEADS)
    if options.get("schedules"):
        encoder.tokens, encoder.heads = options["schedules"]
    ids = make_ids()
    run = encoder.run(ids, protect=options.get("protect"))
    pruning = pruned(model, encoder.tokens, encoder.heads, protect=options.get("protect", ()))
    with torch.no_grad():
        hidden = model.base_model(**padded(ids)).last_hidden_state
    assert_same_kept(pruning.kept, run.kept)
    for i in range(len(ids)):
        rows = slice(run.offsets[i], run.offsets[i + 1])
        found = hidden[i, run.positions[rows]].numpy()
        np.testing.assert_allclose(found, run.hidden[rows], atol=2e-5)
        gone = np.setdiff1d(np.arange(hidden.shape[1]), run.positions[rows])
        assert not hidden[i, gone].any(), "a token that is gone has left something"
    return pruning.kept
