"""What is left of a model: what is refused, how it is saved, what a plan's entries mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatile.sparsity import LayerStructure, Plan, Structure, StructureEntry, match
from spatile.sparsity.layouts import layer_names
from spatile.sparsity.matching import match_layers

from .test_plan import CONFIGS, bert

WHOLE = Structure.whole(3, n_heads=4, n_neurons=16)


@st.composite
def structures(draw: st.DrawFn) -> Structure:
    sizes = st.integers(1, 9)
    n_layers, n_heads, n_neurons = draw(sizes), draw(sizes), draw(st.integers(1, 40))

    def some(n: int) -> st.SearchStrategy[tuple[int, ...]]:
        return st.sets(st.integers(0, n - 1), min_size=1).map(lambda s: tuple(sorted(s)))

    return Structure(
        n_layers,
        n_heads,
        n_neurons,
        tuple(
            LayerStructure(i, draw(some(n_heads)), draw(some(n_neurons)))
            for i in draw(some(n_layers))
        ),
    )


@given(structures())
def test_any_structure_survives_json(structure: Structure) -> None:
    assert Structure.from_dict(json.loads(json.dumps(structure.to_dict()))) == structure
    whole = Structure.whole(
        structure.n_layers, n_heads=structure.n_heads, n_neurons=structure.n_neurons
    )
    assert structure.fits_into(whole)
    assert structure.fits_into(structure)
    assert whole.fits_into(structure) == structure.is_whole == (structure == whole)


@pytest.mark.parametrize(
    ("heads", "neurons", "message"),
    [
        ((), (0,), "layer 2 has no heads, expected at least one to stay"),
        ((0,), (), "layer 2 has no neurons"),
        ((1, 0), (0,), "heads of layer 2 are 1,0, expected ascending"),
        ((0,), (3, 3), "neurons of layer 2 are 3,3"),
        ((-1,), (0,), "heads of layer 2"),
    ],
)
def test_a_layer_keeps_something(
    heads: tuple[int, ...], neurons: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LayerStructure(2, heads, neurons)


def test_a_model_keeps_a_layer_and_only_what_it_has() -> None:
    with pytest.raises(ValueError, match="no layer is left"):
        WHOLE.with_layers([])
    with pytest.raises(ValueError, match=r"layers are \[1, 0\]"):
        WHOLE.with_layers([WHOLE.layers[1], WHOLE.layers[0]])
    with pytest.raises(ValueError, match=r"layers are \[3\], expected ascending places below 3"):
        WHOLE.with_layers([LayerStructure(3, (0,), (0,))])
    with pytest.raises(ValueError, match="layer 0 keeps 4 of its heads, expected places below 4"):
        WHOLE.with_layers([LayerStructure(0, (4,), (0,))])
    with pytest.raises(ValueError, match="layer 0 keeps 16 of its neurons"):
        WHOLE.with_layers([LayerStructure(0, (0,), (16,))])
    with pytest.raises(ValueError, match="n_heads is 0"):
        Structure(1, 0, 1, WHOLE.layers)


@pytest.mark.parametrize(
    "change",
    [
        {"layers": None},
        {"layers": []},
        {"layers": ["x"]},
        {"layers": [{"layer": 0, "heads": "0"}]},
        {"layers": [{"layer": "0", "heads": "0", "neurons": "0"}]},
        {"layers": [{"layer": 0, "heads": "", "neurons": "0"}]},
        {"layers": [{"layer": 0, "heads": "0", "neurons": "0-99999999999999"}]},
        {"layers": [{"layer": 0, "heads": "0", "neurons": "one"}]},
        {"layers": [{"layer": 0, "heads": [0], "neurons": "0"}]},
        {"n_heads": "4"},
        {"n_layers": None},
    ],
)
def test_damaged_structures_name_their_source(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^here: spatile_structure"):
        Structure.from_dict({**WHOLE.to_dict(), **change}, source="here")
    for broken in ({}, [], "x", 1):
        with pytest.raises(ValueError, match=r"^here: spatile_structure"):
            Structure.from_dict(broken, source="here")


# ---- plans --------------------------------------------------------------------------------------


def test_structure_entries_are_saved_and_old_plans_still_load(tmp_path: Path) -> None:
    plain = Plan.uniform("tile", 0.5)
    plan = plain.with_structure(heads=0.25, layers=1 / 3, target="encoder.layer.1")
    plan = plan.with_structure(neurons=0.5)
    assert plan.structure == (
        StructureEntry("heads", 0.25, "encoder.layer.1"),
        StructureEntry("layers", 1 / 3, "encoder.layer.1"),
        StructureEntry("neurons", 0.5),
    )
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    # Older versions read a plan without structure, and refuse one that they would misread.
    assert plain.to_dict()["version"] == 1
    assert "structure" not in plain.to_dict()
    assert plan.to_dict()["version"] == 2
    assert plan.with_sparsity(0.1).structure == plan.structure


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "head", "sparsity": 0.5}, "kind is 'head', expected 'heads'"),
        ({"kind": "heads", "sparsity": 1.0}, r"sparsity of heads is 1\.0, .*something must stay"),
        ({"kind": "layers", "sparsity": -0.1}, "sparsity of layers"),
        ({"kind": "heads", "sparsity": 0.5, "target": "re:("}, "no valid expression"),
        ({"kind": "heads"}, "sparsity"),
        ("heads", "damaged"),
    ],
)
def test_damaged_structure_entries_name_the_file(tmp_path: Path, entry: Any, message: str) -> None:
    path = tmp_path / "damaged.json"
    plan = Plan.uniform("tile", 0.5).with_structure(heads=0.5).to_dict()
    path.write_text(json.dumps({**plan, "structure": [entry]}))
    with pytest.raises(ValueError, match=message) as caught:
        Plan.load(path)
    assert "damaged.json" in str(caught.value)


def test_a_plan_without_matrices_needs_structure() -> None:
    plan = Plan((), structure=(StructureEntry("heads", 0.5),))
    assert match(plan, bert()) == []
    with pytest.raises(ValueError, match="entries is empty"):
        Plan(())


def decided(plan: Plan, kind: Any) -> list[tuple[float, tuple[int, ...]]]:
    layers = {i: f"bert.encoder.layer.{i}" for i in range(12)}
    matrices = [layer_names("bert", i) for i in range(12)]
    return [(e.sparsity, found) for e, found in match_layers(plan, kind, layers, matrices)]


def test_the_first_entry_decides_about_a_layer_and_ignore_wins() -> None:
    plan = Plan.uniform("tile", 0.5).with_structure(heads=0.5, target="encoder.layer.1")
    plan = plan.with_structure(heads=0.25, target=r"re:layer\.[0-3]$").with_structure(neurons=0.75)
    assert decided(plan, "heads") == [(0.5, (1,)), (0.25, (0, 2, 3))]
    assert decided(plan, "neurons") == [(0.75, tuple(range(12)))]
    assert decided(plan, "layers") == []
    ignoring = Plan.uniform("tile", 0.5, ignore=["encoder.layer.1", "re:layer.2.*query"])
    ignoring = ignoring.with_structure(heads=0.5, neurons=0.5, layers=0.5)
    assert decided(ignoring, "heads")[0][1] == (0, *range(3, 12))
    assert decided(ignoring, "neurons")[0][1] == (0, *range(2, 12))
    assert decided(ignoring, "layers")[0][1] == (0, *range(3, 12))


def test_a_target_that_names_no_layer_lists_them() -> None:
    for target in ("encoder.layer.12", "re:decoder"):
        plan = Plan.uniform("tile", 0.5).with_structure(heads=0.5, target=target)
        with pytest.raises(ValueError, match=r"no layer matches .*bert\.encoder\.layer\.11"):
            decided(plan, "heads")


def test_plans_name_layers_as_the_dense_model_did() -> None:
    small = bert(layers=2)  # what is left of five layers
    layers = [LayerStructure(i, (0,), (0,)) for i in (1, 4)]
    structure = Structure.whole(5, n_heads=4, n_neurons=16).with_layers(layers)
    plan = Plan.uniform("tile", 0.5, targets=["encoder.layer.4"])
    found = match(plan, small, structure=structure)
    assert len(found) == 6
    assert all(".layer.1." in m.name for m in found)
    assert match(Plan.uniform("tile", 0.5, ignore=["encoder.layer.1"]), small, structure=structure)
    # A dropped layer is no typing error; a layer that never was is one.
    both = Plan.uniform("tile", 0.5, targets=["encoder.layer.0", "encoder.layer.1"])
    assert len(match(both, small, structure=structure)) == 6
    with pytest.raises(ValueError, match=r"encoder\.layer\.5"):
        match(Plan.uniform("row", 0.5, targets=["encoder.layer.5"]), small, structure=structure)
    aware = Plan.attention_aware({**CONFIGS["bert"], "num_hidden_layers": 5}, 0.5)
    assert len(match(aware, small, structure=structure)) == 12
    config = {**CONFIGS["bert"], "spatile_structure": structure.to_dict()}
    assert Plan.attention_aware(config, 0.5) == aware
