"""Models without some heads, neurons and layers: cut, zeroed, saved and packed, they are one."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from spatile.inference import Encoder
from spatile.sparsity import LayerStructure, Plan, Structure, match
from spatile.sparsity.layouts import layer_names
from spatile.sparsity.structure import layer_cuts
from spatile.torch import Pruner, apply_structure, structure_of

from .conftest import PAIRS, TEXTS, make_model, save, torch_logits

TOLERANCE = 1e-4


def random_structure(model: PreTrainedModel, seed: int) -> Structure:
    """Any number of layers, heads and neurons, at least one of each."""
    rng = np.random.default_rng(seed)
    whole = structure_of(model)

    def some(n: int) -> tuple[int, ...]:
        kept = rng.choice(n, rng.integers(1, n + 1), replace=False)
        return tuple(sorted(kept.tolist()))

    return whole.with_layers(
        LayerStructure(i, some(whole.n_heads), some(whole.n_neurons)) for i in some(whole.n_layers)
    )


def zeroed(model: PreTrainedModel, structure: Structure) -> PreTrainedModel:
    """The full-size model with zeros for what is gone; a dropped layer passes its input through."""
    model = copy.deepcopy(model)
    config, state = model.config, model.state_dict()
    width = config.hidden_size // config.num_attention_heads
    for kept in structure.layers:
        names = layer_names(config.model_type, kept.layer)
        for name, cut in layer_cuts(names, kept, structure, head_width=width).items():
            gone = sorted(set(range(cut.full)) - set(cut.kept))
            tensor = state[f"{config.model_type}.{name}"]
            tensor[(slice(None),) * cut.axis + (gone,)] = 0
    stack = model.base_model.get_submodule(names.query.split(".layer.")[0]).layer
    left = {kept.layer for kept in structure.layers}
    for i, layer in enumerate(list(stack)):
        if i not in left:
            layer.forward = lambda hidden, *rest, **named: hidden
    return model


def pruned(model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    Pruner(model, plan, strength=0.0).prune()
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager", "spatile"])
def test_the_cut_model_gives_what_the_zeroed_one_gives(family: str, attention: str) -> None:
    model = make_model(family)
    ids = [[2, 4, 6, 8, 3], [2, 5, 3]]
    types = [[0] * len(row) for row in ids]
    for seed in range(8):
        structure = random_structure(model, seed)
        expected = torch_logits(zeroed(model, structure), ids, types)
        small = copy.deepcopy(model)
        small.set_attn_implementation(attention)
        assert apply_structure(small, structure) == structure == structure_of(small)
        got = torch_logits(small, ids, types)
        np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=0)


PLANS = {
    "none": None,
    "tile": Plan.uniform("tile", 0.5),
    "odd tiles": Plan.uniform("tile:8x24", 0.5),
    "row": Plan.uniform("row", 0.5),
    "column": Plan.uniform("column", 0.5),
    "element": Plan.uniform("element", 0.8),
}


@settings(max_examples=25, deadline=None)
@given(
    family=st.sampled_from(["bert", "distilbert", "roberta"]),
    plan=st.sampled_from(list(PLANS)),
    seed=st.integers(0, 2**31),
)
def test_any_structure_with_any_pattern_runs_the_same_packed(
    family: str, plan: str, seed: int
) -> None:
    model = make_model(family)
    apply_structure(model, random_structure(model, seed))
    chosen = PLANS[plan]
    if chosen is not None:
        pruned(model, chosen)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save(model, Path(folder) / "checkpoint")
        encoder = Encoder.load(checkpoint, plan=chosen)
        ids, types = encoder.tokenize(TEXTS, PAIRS)
        expected = torch_logits(model, ids, types)
        encoder.save(Path(folder) / "packed")
        packed = Encoder.load(Path(folder) / "packed")
        packed.export(Path(folder) / "exported")
        for name, logits in (
            ("checkpoint", encoder.predict(TEXTS, PAIRS).logits),
            ("packed", packed.predict(TEXTS, PAIRS).logits),
            ("exported", _reloaded(Path(folder) / "exported", ids, types)),
            ("zeros", _reloaded(checkpoint, ids, types)),
            ("cut again", _reloaded(checkpoint, ids, types, cut=True)),
        ):
            np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=0, err_msg=name)


def _reloaded(folder: Path, ids: Any, types: Any, *, cut: bool = False) -> np.ndarray:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    if cut:
        apply_structure(model)
    return torch_logits(model, ids, types)


def test_layers_that_merge_are_those_of_the_dense_model(tmp_path: Path) -> None:
    model = make_model("bert")
    structure = structure_of(model)
    layers = [LayerStructure(i, (0, 3), tuple(range(20))) for i in (1, 2)]
    plan = Plan.attention_aware(model.config, 0.5, precompute=True)
    plan = Plan(plan.entries, precompute=(True, False, True))
    apply_structure(model, structure.with_layers(layers))
    pruned(model, plan)
    encoder = Encoder.load(save(model, tmp_path / "checkpoint"), plan=plan)
    assert encoder.summary().merged_layers == (1,)
    ids, types = encoder.tokenize(TEXTS)
    encoder.save(tmp_path / "packed")
    for loaded in (encoder, Encoder.load(tmp_path / "packed")):
        got = loaded.predict(TEXTS).logits
        np.testing.assert_allclose(got, torch_logits(model, ids, types), atol=TOLERANCE, rtol=0)
    with pytest.raises(ValueError, match="precompute has 2 layers, expected 3"):
        Encoder.load(tmp_path / "checkpoint", plan=Plan(plan.entries, precompute=(True, True)))


@pytest.fixture
def small(tmp_path: Path) -> PreTrainedModel:
    """A BERT with two of three layers, of 4 heads and 128 neurons each."""
    model = make_model("bert")
    layers = [
        LayerStructure(0, (1, 2, 3), tuple(range(0, 96))),
        LayerStructure(2, (0,), tuple(range(0, 128, 4))),
    ]
    apply_structure(model, structure_of(model).with_layers(layers))
    save(model, tmp_path / "checkpoint")
    return model


def test_the_summary_says_what_is_left(small: PreTrainedModel, tmp_path: Path) -> None:
    summary = Encoder.load(tmp_path / "checkpoint").summary()
    assert [(m.layer, m.heads, m.neurons) for m in summary.layers] == [(0, 3, 96), (2, 1, 32)]
    w = 64
    dense = 3 * (4 * w * w + 2 * w * 128)
    left = (4 * w * 48 + 2 * w * 96) + (4 * w * 16 + 2 * w * 32)
    assert summary.dense_multiply_adds_per_token == dense
    assert summary.multiply_adds_per_token == left
    assert summary.sparsity == pytest.approx(1 - left / dense)
    assert {m.shape for m in summary.matrices} == {
        (48, w), (w, 48), (96, w), (w, 96), (16, w), (w, 16), (32, w), (w, 32)
    }  # fmt: skip
    text = str(summary)
    assert "3 of 4" in text
    assert "32 of 128" in text
    assert "2 of 3 layers" in text
    assert summary.to_json()["layers"][1] == {"layer": 2, "heads": 1, "neurons": 32}
    whole = Encoder.load(save(make_model("bert"), tmp_path / "whole")).summary()
    assert "layers" not in str(whole)
    assert whole.sparsity == 0
    # What is gone costs no time between the tokens either.
    encoder = Encoder.load(tmp_path / "checkpoint")
    assert encoder.multiply_adds([10]) == 10 * left + 100 * 2 * (48 + 16)


def test_the_packed_file_holds_what_is_left_alone(small: PreTrainedModel, tmp_path: Path) -> None:
    Encoder.load(tmp_path / "checkpoint").save(tmp_path / "packed")
    manifest = json.loads((tmp_path / "packed" / "spatile.json").read_text())
    assert manifest["version"] == 2
    assert manifest["config"]["spatile_structure"] == structure_of(small).to_dict()
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    assert tensors["encoder.layer.1.output.dense.weight"].shape == (64, 32)
    Encoder.load(save(make_model("bert"), tmp_path / "whole")).save(tmp_path / "packed whole")
    whole = json.loads((tmp_path / "packed whole" / "spatile.json").read_text())
    assert whole["version"] == 1


def test_a_checkpoint_of_a_cut_model_has_the_dense_shapes(
    small: PreTrainedModel, tmp_path: Path
) -> None:
    tensors = load_file(tmp_path / "checkpoint" / "model.safetensors")
    up = tensors["bert.encoder.layer.1.intermediate.dense.weight"]
    assert up.shape == (128, 64)
    assert not up[1::4].any()
    assert up[::4].all()
    dense = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint")
    assert structure_of(dense).layers[1] == LayerStructure(2, tuple(range(4)), tuple(range(128)))
    assert apply_structure(dense) == structure_of(small) == structure_of(dense)
    for name, parameter in small.named_parameters():
        assert torch.equal(parameter, dict(dense.named_parameters())[name])


def test_weights_in_what_is_gone_are_refused(small: PreTrainedModel, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint" / "model.safetensors"
    tensors = load_file(path)
    tensors["bert.encoder.layer.1.attention.output.dense.weight"][3, 40] = 1.0
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"checkpoint: encoder\.layer\.1\.attention\.output\.dense"
    ):
        Encoder.load(tmp_path / "checkpoint")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="spatile_structure of its configuration"):
        apply_structure(model)


def _edit(path: Path, change: Any) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": []}, "no layer is left"),
        ({"layers": [{"layer": 0, "heads": "", "neurons": "0"}]}, "layer 0 has no heads"),
        ({"n_heads": 8}, "n_heads of spatile_structure is 8, expected 4"),
        ({"n_neurons": 999}, "n_neurons of spatile_structure is 999, expected 128"),
        ({"n_layers": 1}, "below 1"),
    ],
)
def test_damaged_structures_name_the_file(
    small: PreTrainedModel, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    Encoder.load(tmp_path / "checkpoint").save(tmp_path / "packed")
    _edit(tmp_path / "checkpoint" / "config.json", lambda c: c["spatile_structure"].update(change))
    with pytest.raises(ValueError, match=message) as caught:
        Encoder.load(tmp_path / "checkpoint")
    assert "config.json" in str(caught.value)
    _edit(
        tmp_path / "packed" / "spatile.json",
        lambda m: m["config"]["spatile_structure"].update(change),
    )
    with pytest.raises(ValueError, match=message) as caught:
        Encoder.load(tmp_path / "packed")
    assert "packed" in str(caught.value)


def test_a_structure_of_another_model_is_refused(small: PreTrainedModel, tmp_path: Path) -> None:
    Encoder.load(tmp_path / "checkpoint").save(tmp_path / "packed")

    def other(config: dict[str, Any]) -> None:
        config["spatile_structure"]["layers"][0]["heads"] = "0-1"

    _edit(tmp_path / "packed" / "spatile.json", lambda m: other(m["config"]))
    with pytest.raises(
        ValueError, match=r"query\.weight has shape \(48, 64\), expected \(32, 64\)"
    ):
        Encoder.load(tmp_path / "packed")


def test_masks_lie_on_the_smaller_matrices(small: PreTrainedModel, tmp_path: Path) -> None:
    plan = Plan.uniform("tile", 0.5, targets=["encoder.layer.2"])
    found = match(
        plan,
        {n: tuple(p.shape) for n, p in small.named_parameters()},
        structure=structure_of(small),
    )
    assert {m.name.split(".")[3] for m in found} == {"1"}
    pruned(small, plan)
    encoder = Encoder.load(save(small, tmp_path / "tiles"), plan=plan)
    rows = {m.name: m for m in encoder.summary().matrices}
    assert rows["encoder.layer.0.output.dense"].pattern == "dense"
    assert rows["encoder.layer.1.output.dense"].shape == (64, 32)
    assert rows["encoder.layer.1.output.dense"].sparsity == 0.5
