"""Choosing heads, neurons and layers, cutting them out of a model, and training what is left."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from spatile.sparsity import LayerStructure, Plan, Structure
from spatile.torch import (
    Pruner,
    PruningCallback,
    Stages,
    apply_structure,
    choose_structure,
    densify,
    prune_structure,
    sparsify,
    structure_of,
    swap_layers,
)

Make = Callable[..., Any]
Row = dict[str, Any]


def structural(**fractions: Any) -> Plan:
    return Plan.uniform("tile", 0.5).with_structure(**fractions)


@pytest.fixture
def batches(rows: list[Row]) -> list[dict[str, torch.Tensor]]:
    """Three batches of 8, the last with padding."""
    found = []
    for start in (0, 8, 16):
        part = rows[start : start + 8]
        found.append(
            {k: torch.stack([r[k] for r in part]) for k in ("input_ids", "attention_mask")}
        )
    found[2]["attention_mask"][:, 7:] = 0
    return found


def loss_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    out = model(**batch).logits
    return (out * torch.tensor([1.0, -0.5])).square().sum()


SMALL = [LayerStructure(1, (0, 2, 3), tuple(range(1, 96, 3)))]


# ---- cutting ------------------------------------------------------------------------------------


def test_what_is_gone_is_gone_from_the_modules(make_bert: Make) -> None:
    model = make_bert()
    before = sum(p.numel() for p in model.bert.encoder.parameters())
    apply_structure(model, structure_of(model).with_layers(SMALL))
    assert len(model.bert.encoder.layer) == model.config.num_hidden_layers == 1
    layer = model.bert.encoder.layer[0]
    assert layer.attention.self.query.weight.shape == (48, 64)
    assert layer.attention.self.num_attention_heads == 3
    assert layer.attention.self.layer_idx == 0
    assert layer.output.dense.in_features == 32
    assert sum(p.numel() for p in model.bert.encoder.parameters()) < before / 2
    assert all(p.is_leaf and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("attention", ["sdpa", "spatile"])
@pytest.mark.parametrize("swap", [False, True])
def test_gradients_are_those_of_the_zeroed_model(
    make_bert: Make, batches: list[Any], attention: str, swap: bool
) -> None:
    model = make_bert(attention=attention).eval()
    structure = structure_of(model).with_layers(
        LayerStructure(i, (0, 2, 3), tuple(range(1, 96, 3))) for i in (0, 1)
    )
    small = copy.deepcopy(model)
    apply_structure(small, structure)
    model.load_state_dict(small.state_dict())  # zeros where the other has nothing
    if swap:
        swap_layers(small)
    for one in (model, small):
        loss_of(one, batches[2]).backward()
    mine, theirs = small.bert.encoder.layer[1], model.bert.encoder.layer[1]
    features = [i for h in (0, 2, 3) for i in range(16 * h, 16 * h + 16)]
    for got, expected in (
        (mine.attention.self.value.weight.grad, theirs.attention.self.value.weight.grad[features]),
        (mine.attention.self.query.bias.grad, theirs.attention.self.query.bias.grad[features]),
        (mine.output.dense.weight.grad, theirs.output.dense.weight.grad[:, 1::3]),
        (mine.output.dense.bias.grad, theirs.output.dense.bias.grad),
    ):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_cutting_twice_counts_from_the_dense_model(make_bert: Make, batches: list[Any]) -> None:
    model = make_bert().eval()
    whole = structure_of(model)
    at_once = apply_structure(copy.deepcopy(model), whole.with_layers(SMALL))
    more = LayerStructure(1, (0, 1, 2, 3), tuple(range(1, 96)))
    apply_structure(model, whole.with_layers([whole.layers[0], more]))
    assert apply_structure(model, whole.with_layers(SMALL)) == at_once == structure_of(model)
    assert model.state_dict()["bert.encoder.layer.0.output.dense.weight"].shape == (64, 96)
    with pytest.raises(ValueError, match="keeps heads, neurons or layers that model does not have"):
        apply_structure(model, whole)


def test_state_dicts_have_the_dense_shapes_and_both_load(
    make_bert: Make, batches: list[Any]
) -> None:
    model = make_bert().eval()
    structure = apply_structure(model, structure_of(model).with_layers(SMALL))
    expected = model(**batches[0]).logits
    state = model.state_dict()
    other = make_bert(seed=5).eval()
    apply_structure(other, structure)
    small = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for given in (state, small):
        assert not torch.equal(other(**batches[0]).logits, expected)
        other.load_state_dict(given)
        assert torch.equal(other(**batches[0]).logits, expected)
        other.load_state_dict(make_bert(seed=5).state_dict(), strict=False)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(**batches[0]).logits, expected)
        assert copied.state_dict()["bert.encoder.layer.0.output.dense.weight"].shape == (64, 96)


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Adafactor"])
def test_an_optimizer_goes_on_with_what_is_left(
    make_bert: Make, batches: list[Any], kind: str
) -> None:
    model = make_bert().eval()
    frozen = model.bert.encoder.layer[1].attention.self.key.weight
    frozen.requires_grad_(False)
    options = {"AdamW": {"lr": 1e-3}, "SGD": {"lr": 1e-3, "momentum": 0.9}, "Adafactor": {}}[kind]
    optimizer = getattr(torch.optim, kind)(model.parameters(), **options)
    loss_of(model, batches[0]).backward()
    optimizer.step()
    dense = model.bert.encoder.layer[1].output.dense.weight
    moments = {k: v for k, v in optimizer.state[dense].items() if v is not None and v.ndim == 2}
    kept_loss = loss_of(model, batches[0])  # a graph that is still alive
    structure = structure_of(model).with_layers(SMALL)
    apply_structure(model, structure, optimizer=optimizer)
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert known == {id(p) for p in model.parameters()}
    assert {id(p) for p in optimizer.state} <= known
    assert not model.bert.encoder.layer[0].attention.self.key.weight.requires_grad
    weight = model.bert.encoder.layer[0].output.dense.weight
    if kind != "Adafactor":
        for key, value in moments.items():
            assert torch.equal(optimizer.state[weight][key], value[:, 1::3])
    before = weight.detach().clone()
    optimizer.zero_grad()
    loss_of(model, batches[0]).backward()
    optimizer.step()
    assert not torch.equal(before, weight)
    assert kept_loss.isfinite()


def test_trainer_saves_resumes_and_goes_on(
    make_bert: Make, train: Callable[..., Any], tmp_path: Path
) -> None:
    def cut() -> Any:
        model = make_bert()
        apply_structure(model, structure_of(model).with_layers(SMALL))
        return model

    whole = train(cut(), None, save_strategy="steps", save_steps=6, name="a").model
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "a" / "checkpoint-6"
    )
    apply_structure(loaded)
    resumed = train(loaded, None, resume=str(tmp_path / "a" / "checkpoint-6"), name="b").model
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(parameter, dict(resumed.named_parameters())[name])


def test_tiles_lie_on_the_smaller_matrices(make_bert: Make, batches: list[Any]) -> None:
    model = make_bert().eval()
    apply_structure(model, structure_of(model).with_layers(SMALL))
    plan = Plan.uniform("tile", 0.5, ignore=["encoder.layer.0.output"])  # a layer that is gone
    pruner = Pruner(model, plan, strength=0.0)
    masks = pruner.prune()
    assert masks["bert.encoder.layer.0.output.dense"].shape == (4, 2)
    expected = model(**batches[0]).logits
    assert len(sparsify(model, pruner)) == 6
    torch.testing.assert_close(model(**batches[0]).logits, expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=r"is sparse, expected densify\(\)"):
        apply_structure(model, Structure.whole(2, n_heads=4, n_neurons=96).with_layers(SMALL[:1]))
    densify(model)


def test_models_that_cannot_be_cut() -> None:
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=9)
    with pytest.raises(NotImplementedError, match="of type 'gpt2', expected one of bert"):
        structure_of(transformers.GPT2Model(config))
    with pytest.raises(NotImplementedError, match="Linear of type None"):
        structure_of(nn.Linear(2, 2))


def test_a_wrapped_model_is_refused(make_bert: Make) -> None:
    model = make_bert()
    with pytest.raises(ValueError, match="before wrapping"):
        apply_structure(nn.DataParallel(model), structure_of(model).with_layers(SMALL))


# ---- choosing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("saliency", ["second-order", "magnitude"])
@pytest.mark.parametrize("scope", ["matrix", "global"])
def test_as_much_goes_as_the_plan_says(
    make_bert: Make, batches: list[Any], saliency: Any, scope: Any
) -> None:
    model = make_bert().eval()
    before = copy.deepcopy(model.state_dict())
    plan = structural(heads=0.5, neurons=0.25)
    chosen = choose_structure(model, plan, batches, saliency=saliency, scope=scope)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert prune_structure(model, plan, batches, saliency=saliency, scope=scope) == chosen
    assert structure_of(model) == chosen
    assert sum(len(kept.heads) for kept in chosen.layers) == 4
    assert sum(len(kept.neurons) for kept in chosen.layers) == 2 * 72
    if scope == "matrix":
        assert [len(kept.heads) for kept in chosen.layers] == [2, 2]
    # Sparsities count from the dense model: the same plan finds nothing more to do.
    assert prune_structure(model, plan, batches, saliency=saliency, scope=scope) == chosen


def test_pruning_by_and_by_ends_at_the_plan(make_bert: Make, batches: list[Any]) -> None:
    model = make_bert().eval()
    plan = structural(heads=0.5, neurons=0.5, layers=0.5)
    found = [prune_structure(model, plan, batches, fraction=f) for f in (0.25, 0.5, 1.0)]
    assert [len(s.layers) for s in found] == [2, 1, 1]
    assert all(b.fits_into(a) for a, b in itertools.pairwise(found))
    assert len(found[-1].layers[0].heads) == 2
    assert len(found[-1].layers[0].neurons) == 48


def test_something_always_stays(make_bert: Make, batches: list[Any]) -> None:
    plan = structural(heads=0.999, neurons=0.9999, layers=0.999)
    structure = prune_structure(make_bert(), plan, batches)
    assert [(len(kept.heads), len(kept.neurons)) for kept in structure.layers] == [(1, 1)]
    # Ranked together, one layer's heads may all be cheaper than the other's.
    model = make_bert()
    with torch.no_grad():
        for name in ("query", "key", "value"):
            getattr(model.bert.encoder.layer[0].attention.self, name).weight.mul_(1e-3)
        model.bert.encoder.layer[0].attention.output.dense.weight.mul_(1e-3)
    structure = prune_structure(model, structural(heads=0.5), saliency="magnitude", scope="global")
    assert [len(kept.heads) for kept in structure.layers] == [1, 3]


def test_magnitude_takes_the_lowest_joint_norms(make_bert: Make) -> None:
    model = make_bert()
    layer = model.bert.encoder.layer[1]
    with torch.no_grad():
        for module in (layer.attention.self.query, layer.attention.self.value):
            module.weight[16:32] *= 0.1
        layer.attention.output.dense.weight[:, 16:32] *= 0.1
        layer.intermediate.dense.weight[7] *= 0.1
        layer.output.dense.weight[:, 11] *= 0.01
    plan = structural(heads=0.25, target="encoder.layer.1")
    plan = plan.with_structure(neurons=2 / 96, target="encoder.layer.1")
    structure = prune_structure(model, plan, saliency="magnitude")
    assert structure.layers[0] == LayerStructure(0, tuple(range(4)), tuple(range(96)))
    assert structure.layers[1].heads == (0, 2, 3)
    assert set(range(96)) - set(structure.layers[1].neurons) == {7, 11}


def test_second_order_sees_what_norms_do_not(make_bert: Make, batches: list[Any]) -> None:
    model = make_bert().eval()
    layer = model.bert.encoder.layer[0]
    with torch.no_grad():
        # Neuron 5 repeats neuron 4 at ten times the size: the other can stand in for it.
        layer.intermediate.dense.weight[5] = layer.intermediate.dense.weight[4]
        layer.intermediate.dense.bias[5] = layer.intermediate.dense.bias[4]
        layer.output.dense.weight *= 10
        expected = model(**batches[0]).logits
    plan = structural(neurons=1 / 96, target="encoder.layer.0")
    structure = prune_structure(model, plan, batches, damping=1e-6)
    gone = set(range(96)) - set(structure.layers[0].neurons)
    assert gone <= {4, 5}
    torch.testing.assert_close(model(**batches[0]).logits, expected, atol=1e-4, rtol=1e-3)


def test_what_stays_makes_up_for_what_goes(make_bert: Make, batches: list[Any]) -> None:
    plan = structural(heads=0.5, neurons=0.5)
    dense = make_bert().eval()
    errors = []
    for compensated in (True, False):
        model = make_bert().eval()
        structure = choose_structure(model, plan, batches)
        if compensated:
            prune_structure(model, plan, batches)
        else:
            apply_structure(model, structure)
        with torch.no_grad():
            changes = [
                (model.bert(**b)[0] - dense.bert(**b)[0])[b["attention_mask"].bool()]
                for b in batches
            ]
        errors.append(sum(float(change.norm()) for change in changes))
    assert errors[0] < 0.8 * errors[1]


def test_a_layer_that_does_nothing_goes_first(make_bert: Make, batches: list[Any]) -> None:
    model = make_bert(num_hidden_layers=3).eval()
    idle = model.bert.encoder.layer[1]
    with torch.no_grad():
        for module in (idle.attention.output.dense, idle.output.dense):
            module.weight.mul_(1e-3)
            module.bias.zero_()
    expected = model(**batches[0]).logits
    structure = prune_structure(model, structural(layers=1 / 3), batches)
    assert [kept.layer for kept in structure.layers] == [0, 2]
    torch.testing.assert_close(model(**batches[0]).logits, expected, atol=1e-2, rtol=1e-2)
    fixed = structural(layers=0.5, target="re:layer.[01]$")
    structure = prune_structure(make_bert(num_hidden_layers=3), fixed, batches)
    assert 2 in [kept.layer for kept in structure.layers]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"saliency": "movement"}, ValueError, "saliency is 'movement'"),
        ({"scope": "row-balanced"}, ValueError, "scope is 'row-balanced'"),
        ({"fraction": 0.0}, ValueError, r"fraction is 0\.0"),
        ({"batches": None}, ValueError, "batches is None, expected texts to choose heads by"),
        ({"batches": []}, ValueError, "batches is empty"),
        ({"damping": 0.0}, ValueError, "damping"),
    ],
)
def test_bad_arguments(
    make_bert: Make, batches: list[Any], given: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        prune_structure(make_bert(), structural(heads=0.5), **{"batches": batches, **given})


def test_layers_need_texts_and_targets_must_match(make_bert: Make) -> None:
    with pytest.raises(ValueError, match="expected texts to choose layers by"):
        prune_structure(make_bert(), structural(layers=0.5), saliency="magnitude")
    plan = structural(heads=0.5, target="encoder.layer.9")
    with pytest.raises(ValueError, match=r"no layer matches 'encoder\.layer\.9'"):
        prune_structure(make_bert(), plan, saliency="magnitude")
    model = make_bert()
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layer\.0\.output\.dense are NaN"):
        prune_structure(model, structural(neurons=0.5), saliency="magnitude")


def test_a_plan_without_structure_changes_nothing(make_bert: Make) -> None:
    model = make_bert()
    before = copy.deepcopy(model.state_dict())
    assert prune_structure(model, Plan.uniform("tile", 0.5)).is_whole
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not hasattr(model.config, "spatile_structure")


def test_structure_is_cut_in_the_precision_of_training(
    make_bert: Any, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def noticed(*args: Any, **options: Any) -> Any:
        seen.append(torch.is_autocast_enabled("cpu"))
        return prune_structure(*args, **options)

    monkeypatch.setattr("spatile.torch.callback.prune_structure", noticed)
    for bf16 in (True, False):
        plan = Plan.uniform("tile", 0.5).with_structure(neurons=0.5)
        stages = Stages(dense=1, reweighted=1, retrain=1)
        callback = PruningCallback(plan, stages=stages, saliency="reconstruction", calibration=8)
        train(make_bert(), callback, bf16=bf16)
    assert seen == [True, False]
