"""Token and head pruning on PyTorch models: the engine's choice, its outputs, and gradients."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from spatile.inference import Encoder
from spatile.sparsity import LayerStructure, Plan, Schedule
from spatile.torch import (
    HeadPruning,
    Pruner,
    TokenPruning,
    apply_structure,
    choose_structure,
    sparsify,
    structure_of,
    swap_layers,
)
from spatile.torch.calibration import LayerWalk
from spatile.torch.cascade_attention import attend
from spatile.torch.structure_pruning import layers_left

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


# ---- the engine's choice


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kept_tokens_and_heads_are_the_engines(family: str, tmp_path: Path) -> None:
    kept = assert_as_the_engine(make_model(family), tmp_path)
    assert kept.counts[:, 2].tolist() == [40, 24, 12]
    assert kept.heads.sum(axis=2)[:, 0].tolist() == [4, 3, 2]


@pytest.mark.parametrize("attention", ["eager", "sdpa", "spatile"])
def test_whatever_the_models_own_attention_is(attention: str, tmp_path: Path) -> None:
    model = make_model("bert")
    model.set_attn_implementation(attention)
    assert_as_the_engine(model, tmp_path)


def test_protected_positions_stay(tmp_path: Path) -> None:
    kept = assert_as_the_engine(
        make_model("bert"), tmp_path, protect=(-1,), schedules=(TOKENS, None)
    )
    assert [kept.positions(2, i)[-1] for i in range(5)] == [n - 1 for n in LENGTHS]


def test_by_length_each_input_loses_its_own_share(tmp_path: Path) -> None:
    """One input keeps all, so the batch stays as wide as it is while others shrink."""
    by_length = Schedule.by_length(lambda n: 1.0 if n in (40, 4) else 0.6)
    kept = assert_as_the_engine(make_model("bert"), tmp_path, schedules=(by_length, by_length))
    assert kept.counts[:, 2].tolist() == [40, 40, 40]
    assert kept.counts[2, 0] < 10


@pytest.mark.parametrize("pattern", ["tile", "row", "column", "head:16"])
def test_tiles_that_are_gone_are_no_part_of_a_head(pattern: str, tmp_path: Path) -> None:
    """Whole value rows, and whole heads, without weights: their biases stay."""
    model = make_model("bert", seed=3)
    targets = [r"re:\.(value|output\.dense|intermediate\.dense)$"]
    if pattern == "head:16":
        targets = [r"re:\.value$"]
    plan = Plan.uniform(pattern, 0.7, targets=targets)
    Pruner(model, plan, strength=0.0).prune()
    dead = ~model.bert.encoder.layer[0].attention.self.value.weight.any(dim=1)
    assert pattern == "column" or dead.any()
    assert_as_the_engine(model, tmp_path, plan=plan)


@pytest.mark.parametrize("family", FAMILIES)
def test_models_that_lost_heads_and_layers(family: str, tmp_path: Path) -> None:
    """Heads keep their numbers, also those that a layer no longer has."""
    model = make_model(family)
    whole = structure_of(model)
    neurons = whole.layers[0].neurons[::2]
    apply_structure(
        model,
        whole.with_layers(
            [LayerStructure(0, (0, 2, 3), neurons), LayerStructure(2, (1, 3), neurons)]
        ),
    )
    two = Schedule.per_layer([1, 0.5])
    model.save_pretrained(tmp_path)
    encoder = Encoder.load(tmp_path, tokens=two, heads=two)
    run = encoder.run(make_ids())
    pruning = pruned(model, two, two)
    with torch.no_grad():
        model(**padded(make_ids()))
    assert_same_kept(pruning.kept, run.kept)


def test_structure_that_goes_while_pruning_is_attached() -> None:
    model = make_model("bert")
    pruning = pruned(model, Schedule.linear(0.75), Schedule.linear(0.75))
    model(**padded(make_ids()))
    whole = structure_of(model)
    rest = [LayerStructure(i, (1, 2), whole.layers[0].neurons[:32]) for i in (0, 2)]
    apply_structure(model, whole.with_layers(rest))
    with torch.no_grad():
        found = model(**padded(make_ids())).logits
    assert len(pruning.kept.counts) == 2
    other = make_model("bert")
    apply_structure(other, whole.with_layers(rest))
    pruned(other, Schedule.linear(0.75), Schedule.linear(0.75))
    with torch.no_grad():
        assert torch.equal(other(**padded(make_ids())).logits, found)


# ---- outputs


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_is_one_input_after_another(family: str) -> None:
    model = make_model(family)
    pruning = pruned(model)
    ids = make_ids()
    with torch.no_grad():
        together = model(**padded(ids)).logits
        kept = pruning.kept
        for i, row in enumerate(ids):
            alone = model(**padded([row])).logits[0]
            torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=0)
            for layer in range(3):
                mine = pruning.kept.positions(layer, 0)
                np.testing.assert_array_equal(kept.positions(layer, i), mine)


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_all_is_the_unpruned_model_bit_for_bit(family: str) -> None:
    model = make_model(family)
    batch = padded(make_ids())
    expected = model(**batch, output_hidden_states=True)
    pruning = pruned(model, Schedule.linear(1.0), Schedule.linear(1.0))
    found = model(**batch, output_hidden_states=True)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.hidden_states[2], expected.hidden_states[2])
    assert pruning.kept.counts.tolist() == [LENGTHS] * 3
    pruning.detach()
    partly = TokenPruning(TOKENS).attach(model)
    partly.progress = 0.0
    assert torch.equal(model(**batch).logits, expected.logits)


def test_detached_the_model_is_as_before() -> None:
    model = make_model("distilbert")
    batch = padded(make_ids())
    before = model(**batch).logits
    modules = {name: set(m.__dict__) for name, m in model.named_modules()}
    with TokenPruning(TOKENS).attach(model), HeadPruning(HEADS).attach(model):
        assert not torch.allclose(model(**batch).logits, before)
    assert torch.equal(model(**batch).logits, before)
    assert {name: set(m.__dict__) for name, m in model.named_modules()} == modules
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    assert sum(hooks) == 0


def test_hidden_states_have_zeros_where_tokens_are_gone() -> None:
    model = make_model("bert")
    pruning = TokenPruning(TOKENS).attach(model)
    out = model(**padded(make_ids()), output_hidden_states=True)
    masks = pruning.masks
    assert [h.shape for h in out.hidden_states] == [(5, 40, 64)] * 4
    for layer, (hidden, mask) in enumerate(zip(out.hidden_states[1:], masks, strict=True)):
        assert torch.equal(hidden.ne(0).any(dim=-1), mask), layer
        behind = pruning.kept.counts[min(layer + 1, 2)]
        assert mask.sum(dim=1).tolist() == behind.tolist()
    assert out.hidden_states[0].ne(0).any(dim=-1).all()


def test_without_a_mask_all_tokens_count() -> None:
    model = make_model("bert")
    ids = torch.tensor(make_ids([20, 20]))
    pruning = pruned(model)
    bare = model(ids).logits
    assert pruning.kept.counts[:, 0].tolist() == [20, 12, 6]
    assert torch.equal(bare, model(ids, torch.ones_like(ids)).logits)
    inputs = model.bert.embeddings.word_embeddings(ids)
    torch.testing.assert_close(model(inputs_embeds=inputs).logits, bare)


def test_later_layers_see_fewer_tokens() -> None:
    """In BERT from W_O on, so that the rest of the layer is smaller too."""
    model, seen = make_model("bert"), []
    for layer in model.bert.encoder.layer:
        layer.intermediate.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[1]))
    pruned(model)
    model(torch.tensor(make_ids([40, 40])))
    assert seen == [24, 12, 12]


# ---- gradients


def masked_twin(model: Any, batch: dict[str, torch.Tensor], kept: Any) -> torch.Tensor:
    """The logits of a BERT that only masks: full-length, in plain operations, choices given."""
    bert, n = model.bert, len(batch["input_ids"])
    x = bert.embeddings(batch["input_ids"])
    for i, layer in enumerate(bert.encoder.layer):
        own = layer.attention.self
        stays = torch.zeros(x.shape[:2], dtype=torch.bool)
        for j in range(n):
            stays[j, kept.positions(i, j)] = True
        q, k, v = (f(x).view(n, -1, 4, 16).transpose(1, 2) for f in (own.query, own.key, own.value))
        scores = (q @ k.transpose(2, 3) / 4).masked_fill(~stays[:, None, None], -torch.inf)
        heads = torch.from_numpy(kept.heads[i])[:, :, None, None]
        context = (scores.softmax(-1) @ v * heads).transpose(1, 2).flatten(2)
        y = layer.attention.output(context, x)
        x = layer.output(layer.intermediate(y), y)
    return model.classifier(bert.pooler(x))  # type: ignore[no-any-return]


def test_gradients_are_those_of_a_masked_float64_model() -> None:
    """The selection held fixed, of every parameter."""
    model = make_model("bert")
    batch = padded(make_ids())
    pruning = pruned(model)
    weight = torch.randn(5, 2)
    (model(**batch).logits * weight).sum().backward()
    twin = make_model("bert").double()
    logits = masked_twin(twin, batch, pruning.kept)
    (logits * weight).sum().backward()
    for (name, found), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        scale = float(expected.grad.abs().max())
        assert float((found.grad - expected.grad).abs().max()) <= 1e-4 * max(scale, 1e-2), name


def test_gradients_by_finite_differences() -> None:
    """In float64 the plain operations compute; no choice is near enough to a tie to change."""
    model = make_model("roberta").double()
    batch = padded(make_ids([9, 5]))
    pruned(model)
    bias = model.roberta.encoder.layer[1].attention.self.value.bias

    def logits(value: torch.Tensor) -> torch.Tensor:
        name = "roberta.encoder.layer.1.attention.self.value.bias"
        return torch.func.functional_call(model, {name: value}, (), batch).logits

    assert torch.autograd.gradcheck(logits, bias.detach().clone().requires_grad_(), fast_mode=True)


def test_plain_operations_and_the_kernel_agree() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 11, 4, 8)
    value, output = torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)
    lengths, kept = torch.tensor([11, 6]), torch.tensor([[True] * 4, [True, False, True, False]])
    found, expected = (
        attend(
            *(t.to(dtype) for t in (q, k, v)), value=value.to(dtype), output=output.to(dtype),
            lengths=lengths, kept=kept, dropout=0.0, importance=True,
        )
        for dtype in (torch.float32, torch.float64)
    )  # fmt: skip
    for mine, theirs in zip(vars(found).values(), vars(expected).values(), strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), atol=1e-4, rtol=1e-5)
    assert expected.tokens is not None
    assert expected.tokens.sum(dim=1).tolist() == pytest.approx([44, 12])


# ---- a plain loop, and what it works together with


def test_a_plain_loop_learns_and_reaches_the_ratio() -> None:
    model = make_model("bert").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(0)
    ids = torch.randint(4, 50, (16, 20))
    labels = (ids[:, 1] > 26).long()
    pruning, heads = TokenPruning(TOKENS).attach(model), HeadPruning(HEADS).attach(model)
    losses, counts = [], []
    for step in range(30):
        pruning.progress = heads.progress = min(1.0, step / 10)
        loss = model(ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
        counts.append(int(pruning.kept.counts[2, 0]))
    assert counts[:11] == [20, 19, 17, 16, 14, 13, 12, 10, 9, 7, 6]
    assert counts[10:] == [6] * 20
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_autocast_and_spatiles_layers(tmp_path: Path) -> None:
    model = make_model("bert")
    swap_layers(model)
    assert_as_the_engine(model, tmp_path)
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**padded(make_ids()), labels=torch.zeros(5, dtype=torch.long)).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_layers_that_compute_kept_tiles_only(tmp_path: Path) -> None:
    model = make_model("bert")
    plan = Plan.uniform("tile", 0.6)
    pruner = Pruner(model, plan, strength=0.0)
    pruner.prune()
    sparsify(model, pruner)
    assert_as_the_engine(model, tmp_path, plan=plan)


def test_calibration_sees_all_tokens() -> None:
    model = make_model("bert")
    batch = padded(make_ids())

    def grams() -> dict[str, torch.Tensor]:
        names = []
        with LayerWalk(model, [batch]) as walk:
            for prefix in walk.layers:
                names.append(walk.grams([f"{prefix}.output.dense"], advance=True))
        return {name: gram for part in names for name, gram in part.items()}

    expected = grams()
    pruning = pruned(model)
    for name, gram in grams().items():
        assert torch.equal(gram, expected[name]), name
    model(**batch)
    assert pruning.kept.counts[2, 2] == 12, "the walk has left it paused"


def test_choosing_structure_looks_at_all_tokens() -> None:
    """Also where layers are left out by way of trial, which no schedule would fit."""
    model = make_model("bert")
    plan = Plan.uniform("tile", 0.0).with_structure(heads=0.25, layers=0.34)
    batches = [padded(make_ids())]
    expected = choose_structure(model, plan, batches)
    pruning = TokenPruning(TOKENS).attach(model)
    assert choose_structure(model, plan, batches) == expected
    assert len(expected.layers) == 2 == layers_left(model, plan)
    model(**batches[0])
    assert pruning.kept.counts[2, 2] == 12


def test_a_copy_is_pruned_on_its_own() -> None:
    model = make_model("bert")
    pruning = pruned(model)
    twin = copy.deepcopy(model)
    pruning.detach()
    batch = padded(make_ids())
    assert not torch.equal(model(**batch).logits, twin(**batch).logits)


# ---- what is refused


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
