"""What TokenPruning and HeadPruning refuse, by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from spatile.sparsity import Schedule
from spatile.torch import (
    HeadPruning,
    TokenPruning,
)

from .pruned_models import (
    HEADS,
    TOKENS,
    make_ids,
    make_model,
    padded,
    pruned,
)


def bert(kind: str, **changes: Any) -> Any:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, **changes,
    )  # fmt: skip
    return getattr(transformers, kind)(config)


def test_models_that_it_does_not_fit_are_refused_by_name() -> None:
    half = Schedule.per_layer([1, 0.5])
    gpt = transformers.GPT2Model(transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2))
    for model, error, words in (
        (gpt, NotImplementedError, "model is a GPT2Model of type 'gpt2', expected one of bert"),
        (bert("BertModel", is_decoder=True), NotImplementedError, "model is a decoder"),
        (bert("BertForQuestionAnswering"), NotImplementedError, "BertForQuestionAnswering, exp"),
        (bert("BertForTokenClassification"), NotImplementedError, "this head needs all tokens"),
        (bert("BertForMaskedLM"), NotImplementedError, "this head needs all tokens"),
        (make_model("bert"), ValueError, "schedule: keep has 2 layers, expected 3"),
        (torch.nn.DataParallel(bert("BertModel")), NotImplementedError, "inside DataParallel"),
        (torch.nn.Linear(2, 2), NotImplementedError, "model is a Linear"),
    ):
        with pytest.raises(error, match=words):
            TokenPruning(half).attach(model)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    HeadPruning(half).attach(bert("BertForTokenClassification"))
    checkpointing = bert("BertModel")
    checkpointing.gradient_checkpointing_enable()
    with pytest.raises(NotImplementedError, match="gradient checkpointing is on, expected off"):
        HeadPruning(half).attach(checkpointing)


def test_arguments_out_of_range_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="TokenPruning: schedule is a float, expected a Schedule"):
        TokenPruning(0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"TokenPruning: protect is 3, expected a list"):
        TokenPruning(TOKENS, protect=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"HeadPruning: gradual is -1, expected"):
        HeadPruning(HEADS, gradual=-1)
    with pytest.raises(ValueError, match="HeadPruning: unit is 'days'"):
        HeadPruning(HEADS, unit="days")  # type: ignore[arg-type]
    pruning = TokenPruning(TOKENS)
    for value in (1.5, float("nan")):
        with pytest.raises(ValueError, match=r"TokenPruning: progress is .*in \[0, 1\]"):
            pruning.progress = value
    with pytest.raises(TypeError, match="progress is True"):
        pruning.progress = True
    for name in ("kept", "masks"):
        with pytest.raises(RuntimeError, match="no batch has run"):
            getattr(pruning, name)


def test_attaching_twice_is_refused() -> None:
    model = make_model("bert")
    pruning = TokenPruning(TOKENS).attach(model)
    with pytest.raises(ValueError, match="attached to a model, expected detach"):
        pruning.attach(model)
    with pytest.raises(ValueError, match="model has a TokenPruning already"):
        TokenPruning(TOKENS).attach(model)
    pruning.detach()
    pruning.attach(model).detach()
    pruning.detach()


def test_inputs_that_cannot_be_pruned_are_refused_by_name() -> None:
    model = make_model("bert")
    pruning = pruned(model, protect=(5,))
    batch = padded(make_ids([9, 7]))
    left = batch["attention_mask"].flip(1)
    with pytest.raises(ValueError, match="attention_mask has padding before or between tokens"):
        model(batch["input_ids"], left)
    with pytest.raises(NotImplementedError, match=r"attention_mask is \(2, 1, 9, 9\), expected"):
        model(batch["input_ids"], torch.ones(2, 1, 9, 9))
    with pytest.raises(ValueError, match="output_attentions is True, expected False"):
        model(**batch, output_attentions=True)
    with pytest.raises(ValueError, match="protect holds position 5, sequence 1 has 4 tokens"):
        model(**padded(make_ids([9, 4])))
    with pytest.raises(NotImplementedError, match="return_dict is False, expected True"):
        model.bert(**batch, return_dict=False)
    model(**batch)
    assert pruning.kept.counts[:, 0].tolist() == [9, 5, 3]
    model.train().gradient_checkpointing_enable()
    with pytest.raises(NotImplementedError, match="gradient checkpointing is on"):
        model(**batch)


@pytest.mark.parametrize(("where", "name"), [("query", "Token"), ("value", "Head")])
def test_importance_that_is_nan_is_refused(where: str, name: str) -> None:
    model = make_model("bert")
    with torch.no_grad():
        getattr(model.bert.encoder.layer[0].attention.self, where).weight[3, 3] = torch.nan
    pruned(model)
    with pytest.raises(ValueError, match=f"{name}Pruning: layer 0: the importance of .* is NaN"):
        model(**padded(make_ids()))
