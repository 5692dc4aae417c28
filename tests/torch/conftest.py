"""Small random models and data that train in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers


@pytest.fixture
def bert_config() -> Any:
    return transformers.BertConfig(
        vocab_size=40,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=32,
        num_labels=2,
    )


@pytest.fixture
def make_bert(bert_config: Any) -> Callable[..., Any]:
    """A fresh classifier; the same seed gives the same weights."""

    def make(seed: int = 0, attention: str = "sdpa", **changes: Any) -> Any:
        torch.manual_seed(seed)
        config = transformers.BertConfig(**{**bert_config.to_diff_dict(), **changes})
        config._attn_implementation = attention
        return transformers.BertForSequenceClassification(config)

    return make


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """24 examples of 12 tokens: the class is whether the second token is above the middle."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 40, (24, 12), generator=generator)
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": int(row[1] > 21)}
        for row in ids
    ]


@pytest.fixture
def train(tmp_path: Path, rows: list[dict[str, Any]]) -> Callable[..., Any]:
    """Train ``model`` with a callback and return the Trainer. 6 steps an epoch of 4 rows."""

    def run(
        model: Any, callback: Any, *, resume: str | None = None, name: str = "run", **args: Any
    ) -> Any:
        settings = {
            "output_dir": str(tmp_path / name),
            "num_train_epochs": 3,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "logging_strategy": "no",
            "seed": 3,
            **args,
        }
        callbacks = callback if isinstance(callback, list) else [callback]
        trainer = transformers.Trainer(
            model,
            transformers.TrainingArguments(**settings),
            train_dataset=rows,
            eval_dataset=rows[:8],
            callbacks=[c for c in callbacks if c is not None],
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run
