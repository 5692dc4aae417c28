"""A small random BERT with a WordPiece tokenizer, and a data set that it learns in a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WORDS = [f"word{i}" for i in range(40)]


def write_model(folder: Path, *, seed: int = 0, family: str = "bert") -> Path:
    """A checkpoint of two layers of width 64 without a head, and its tokenizer."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {token: i for i, token in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    config = transformers.BertConfig(
        vocab_size=len(vocab),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=64,
    )
    torch.manual_seed(seed)
    transformers.BertModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_data(folder: Path, *, pairs: bool = False, regression: bool = False) -> Path:
    """Train (48) and dev (24) rows; the first word decides the class, or its number the score."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    seen: set[str] = set()
    for split, count in (("train", 48), ("dev", 24)):
        rows: list[dict[str, Any]] = []
        while len(rows) < count:
            picked = random.integers(len(WORDS), size=int(random.integers(3, 12)))
            text = " ".join(WORDS[i] for i in picked)
            if text in seen:
                continue
            seen.add(text)
            first = int(picked[0])
            row: dict[str, Any] = {"sentence1" if pairs else "sentence": text}
            if pairs:
                row["sentence2"] = WORDS[int(random.integers(len(WORDS)))]
            row["score" if regression else "label"] = (
                first / 10 if regression else ("high" if first >= 20 else "low")
            )
            rows.append(row)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@dataclass(frozen=True)
class Finished:
    """A run that came to its end, and the report that it returned."""

    folder: Path
    report: dict[str, Any]


TINY: dict[str, Any] = {
    "sparsity": 0.5,
    "saliency": "magnitude",
    "scope": "matrix",
    "prunings": 1,
    "distill": 0.0,
    "distill_hidden": 0.0,
    "lr_retrain": 3e-3,
    "epochs_dense": 6.0,
    "epochs_reweighted": 3.0,
    "epochs_retrain": 3.0,
    "batch_size": 4,
    "lr": 3e-3,
    "weight_decay": 0.0,
    "max_length": 64,
    "threads": 1,
    "timing_rounds": 1,
}
"""E.T.'s published stages, with settings with which the small model learns the small task."""

SHORT: dict[str, Any] = {
    **TINY,
    "epochs_dense": 1.0,
    "epochs_reweighted": 1.0,
    "epochs_retrain": 1.0,
    "timing_rounds": 0,
}
"""One epoch of each stage, where what is learnt does not matter."""


def logits_of(folder: Path, data: Path) -> np.ndarray[Any, Any]:
    """Logits on dev by transformers alone, row by row, without padding."""
    import torch
    import transformers

    from spatile.finetune.data import load_task

    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    dev = load_task(data).dev
    pairs = dev.pairs or [None] * len(dev)
    with torch.no_grad():
        rows = [
            model(**tokenizer(text, pair, return_tensors="pt")).logits[0].numpy()
            for text, pair in zip(dev.texts, pairs, strict=True)
        ]
    return np.stack(rows)


@pytest.fixture(scope="session")
def finished(
    tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """One run of the whole pipeline, for all tests that look at what it left."""
    from spatile.finetune import finetune

    out = tmp_path_factory.mktemp("finished") / "run"
    return Finished(out, finetune(tiny_model, tiny_data, out=out, **TINY))


@pytest.fixture(scope="session")
def finished_pairs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run on pairs with a score: the attention-aware plan, merged W_V·W_O, distilling."""
    from spatile.finetune import finetune

    data = write_data(tmp_path_factory.mktemp("pairs"), pairs=True, regression=True)
    out = tmp_path_factory.mktemp("finished") / "pairs"
    settings = {
        **TINY,
        "pattern": "attention-aware",
        "precompute": True,
        "distill": 0.5,
        "timing_rounds": 0,
    }
    return Finished(out, finetune(tiny_model, data, out=out, **settings))


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes files (name with its suffix → content) and returns their folder."""

    def write(**files: str | bytes) -> Path:
        for name, content in files.items():
            stem, _, suffix = name.rpartition("_")
            data = content if isinstance(content, bytes) else content.encode()
            (tmp_path / f"{stem}.{suffix}").write_bytes(data)
        return tmp_path

    return write
