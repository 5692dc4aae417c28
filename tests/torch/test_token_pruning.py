"""Token and head pruning on PyTorch models: the engine's choice, and its outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from spatile.inference import Encoder
from spatile.sparsity import Plan, Schedule
from spatile.torch import (
    HeadPruning,
    Pruner,
    TokenPruning,
)

from .pruned_models import (
    FAMILIES,
    HEADS,
    LENGTHS,
    TOKENS,
    assert_as_the_engine,
    make_ids,
    make_model,
    padded,
    pruned,
)

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


@pytest.mark.parametrize("short", [5, 12])
def test_nan_in_an_input_that_loses_nothing_is_its_own(short: int, tmp_path: Path) -> None:
    """Beside it another keeps what it keeps alone, in the engine too."""
    by_length = Schedule.by_length(lambda n: 1.0 if n == short else 0.6)
    model = make_model("bert")
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[3] = torch.nan
    good, bad = make_ids([9, short])
    bad[2] = 3
    model.save_pretrained(tmp_path)
    engine = Encoder.load(tmp_path, tokens=by_length).run([good]).kept
    pruning = pruned(model, by_length, None)
    with torch.no_grad():
        alone = model(**padded([good])).logits[0]
        together = model(**padded([good, bad])).logits
    for layer in range(3):
        np.testing.assert_array_equal(pruning.kept.positions(layer, 0), engine.positions(layer, 0))
    assert pruning.kept.counts[:, 1].tolist() == [short] * 3
    torch.testing.assert_close(together[0], alone, atol=1e-5, rtol=0)
    assert together[1].isnan().all()
    with pytest.raises(ValueError, match="TokenPruning: layer 0: the importance of tokens is NaN"):
        model(**padded([good, [*bad, 4]]))


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
