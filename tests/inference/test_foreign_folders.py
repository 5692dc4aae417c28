"""What folders written by other libraries say of pooling, heads and tokenizers is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForTokenClassification, BertTokenizerFast

from spatile.inference import Encoder

from .conftest import PAIRS, TEXTS, make_model, save


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        ({"embedding_dimension": 64, "pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"pooling_mode": "cls"}, "first"),
        ({"pooling_mode": ["mean"]}, "mean"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "first"),
        ({"pooling_mode": "max"}, None),
        ({"pooling_mode": ["mean", "max"]}, None),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, None),
    ],
)
def test_pooling_as_sentence_transformers_writes_it(
    tmp_path: Path, settings: dict[str, Any], pooling: str | None
) -> None:
    folder = save(make_model("bert").base_model, tmp_path)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings), "utf-8")
    if pooling is None:
        with pytest.raises(NotImplementedError, match=r"pooling is .*, expected cls or mean"):
            Encoder.load(folder)
    else:
        assert Encoder.load(folder).pooling == pooling


def test_a_head_for_tokens_is_not_taken_for_one_for_texts(tmp_path: Path) -> None:
    """Some of these models' files hold the pooler that a sequence classifier has."""
    config = BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32,
    )  # fmt: skip
    model = BertForTokenClassification(config)
    model.bert.pooler = torch.nn.ModuleDict({"dense": torch.nn.Linear(32, 32)})
    encoder = Encoder.load(save(model, tmp_path))
    assert not encoder.has_classifier
    assert encoder.encode(TEXTS[:1]).pooled.shape == (1, 32)


@pytest.mark.parametrize("typed", [True, False])
def test_types_of_pairs_are_those_that_transformers_feeds(tmp_path: Path, typed: bool) -> None:
    model = make_model("bert")
    folder = save(model, tmp_path)
    names = ["input_ids", "token_type_ids", "attention_mask"] if typed else ["input_ids"]
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    fed = AutoTokenizer.from_pretrained(folder)(TEXTS[0], PAIRS[0], return_tensors="pt")
    assert ("token_type_ids" in fed) == typed
    with torch.no_grad():
        expected = model(**fed).logits.numpy()
    found = Encoder.load(folder).predict(TEXTS[:1], PAIRS[:1]).logits
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_bare_vocabulary_is_read_with_its_settings(tmp_path: Path) -> None:
    folder = save(make_model("bert"), tmp_path)
    (folder / "tokenizer.json").unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "über", "uber", "中", "文", "中文"]
    (folder / "vocab.txt").write_text("\n".join(words), "utf-8")
    text = "Über 中文"
    for strip, chinese in ((False, True), (True, False), (None, True)):
        settings = {
            "do_lower_case": True, "strip_accents": strip, "tokenize_chinese_chars": chinese,
        }  # fmt: skip
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
        expected = BertTokenizerFast(vocab={w: i for i, w in enumerate(words)}, **settings)(text)
        assert Encoder.load(folder).tokenize([text])[0] == [expected["input_ids"]]
