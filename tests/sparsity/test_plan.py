"""Plans: what they match, how they are saved, what they refuse."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spatile.patterns import Row, Tile
from spatile.sparsity import Plan, PlanEntry, attention_multiply_adds, find_matrices, match

Shapes = dict[str, tuple[int, ...]]


def bert(layers: int = 2, prefix: str = "bert.", d: int = 32) -> Shapes:
    shapes: Shapes = {
        f"{prefix}embeddings.word_embeddings.weight": (100, d),
        f"{prefix}embeddings.LayerNorm.weight": (d,),
    }
    for i in range(layers):
        layer = f"{prefix}encoder.layer.{i}."
        for name in ("attention.self.query", "attention.self.key", "attention.self.value"):
            shapes[f"{layer}{name}.weight"] = (d, d)
            shapes[f"{layer}{name}.bias"] = (d,)
        shapes[f"{layer}attention.output.dense.weight"] = (d, d)
        shapes[f"{layer}intermediate.dense.weight"] = (4 * d, d)
        shapes[f"{layer}output.dense.weight"] = (d, 4 * d)
    shapes[f"{prefix}pooler.dense.weight"] = (d, d)
    shapes["classifier.weight"] = (2, d)
    return shapes


def gpt2(prefix: str = "transformer.", d: int = 32) -> Shapes:
    return {
        f"{prefix}wte.weight": (100, d),
        f"{prefix}wpe.weight": (20, d),
        f"{prefix}h.0.attn.c_attn.weight": (d, 3 * d),
        f"{prefix}h.0.attn.c_proj.weight": (d, d),
        f"{prefix}h.0.mlp.c_fc.weight": (d, 4 * d),
        f"{prefix}h.0.mlp.c_proj.weight": (4 * d, d),
        "lm_head.weight": (100, d),
    }


CONFIGS: dict[str, dict[str, Any]] = {
    name: {"model_type": name, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    for name in ("bert", "roberta")
}
CONFIGS["distilbert"] = {"model_type": "distilbert", "dim": 32, "n_heads": 4, "n_layers": 2}
CONFIGS["gpt2"] = {"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 1}


@pytest.mark.parametrize("prefix", ["", "bert.", "module.bert."])
def test_default_targets_are_the_encoder_alone(prefix: str) -> None:
    found = match(Plan.uniform("tile", 0.8), bert(prefix=prefix))
    assert len(found) == 12
    assert all(f"{prefix}encoder.layer." in m.name for m in found)
    assert {m.shape for m in found} == {(32, 32), (128, 32), (32, 128)}
    assert all(m.pattern == Tile() and m.sparsity == 0.8 and not m.transposed for m in found)


def test_gpt2_is_turned_round_and_its_fused_matrix_split() -> None:
    found = {m.name: m for m in match(Plan.uniform("tile", 0.5), gpt2())}
    assert [name.removeprefix("transformer.h.0.") for name in found] == [
        "attn.c_attn.query",
        "attn.c_attn.key",
        "attn.c_attn.value",
        "attn.c_proj",
        "mlp.c_fc",
        "mlp.c_proj",
    ]
    key = found["transformer.h.0.attn.c_attn.key"]
    assert (key.parameter, key.shape) == ("transformer.h.0.attn.c_attn.weight", (32, 32))
    assert (key.transposed, key.rows) == (True, (32, 64))
    fc = found["transformer.h.0.mlp.c_fc"]
    assert (fc.shape, fc.transposed, fc.rows) == ((128, 32), True, None)


def test_gpt2_names_over_linear_layers_are_not_turned_round() -> None:
    shapes = {name: shape[::-1] for name, shape in gpt2().items()}
    found = {m.name: m for m in find_matrices(shapes)}
    assert found["transformer.h.0.mlp.c_fc"].shape == (128, 32)
    assert not found["transformer.h.0.mlp.c_fc"].transposed


def test_plain_names_match_whole_parts() -> None:
    plan = Plan.uniform("row", 0.5, targets=["encoder.layer.1"])
    found = match(plan, bert(layers=12))
    assert len(found) == 6
    assert all(".layer.1." in m.name for m in found)
    plan = Plan.uniform("row", 0.5, targets=["query", "re:key$"], ignore=["re:layer\\.0"])
    assert [m.name.split(".")[-1] for m in match(plan, bert())] == ["query", "key"]
    plan = Plan.uniform("row", 0.5, targets=["encoder.layer.0.output.dense.weight"])
    assert [m.name for m in match(plan, bert())] == ["bert.encoder.layer.0.output.dense"]


def test_first_entry_decides_and_ignore_wins() -> None:
    plan = Plan(
        (PlanEntry("query", Row(), 0.25), PlanEntry("re:encoder", Tile(), 0.5)),
        ignore=("encoder.layer.1",),
    )
    found = {m.name: m for m in match(plan, bert())}
    assert len(found) == 6
    assert found["bert.encoder.layer.0.attention.self.query"].pattern == Row()
    assert found["bert.encoder.layer.0.attention.self.key"].sparsity == 0.5


def test_embeddings_and_heads_are_never_pruned() -> None:
    everything = Plan.uniform("tile", 0.5, targets=["re:."])
    assert len(match(everything, bert())) == 12
    assert len(match(everything, gpt2())) == 6
    for target in ("classifier", "pooler", "word_embeddings"):
        with pytest.raises(ValueError, match="never pruned"):
            match(Plan.uniform("tile", 0.5, targets=[target]), bert())


def test_a_plan_that_matches_nothing_lists_what_there_was() -> None:
    with pytest.raises(ValueError, match=r"model has decoder\.fc1, .*") as caught:
        match(Plan.uniform("tile", 0.5), {"decoder.fc1.weight": (8, 8), "decoder.fc2": (8, 8)})
    assert "decoder.fc2" in str(caught.value)
    with pytest.raises(ValueError, match="no 2-D weight"):
        match(Plan.uniform("tile", 0.5), {"norm.weight": (8,)})
    with pytest.raises(ValueError, match=r"attention\.slef"):
        match(Plan.uniform("tile", 0.5, targets=["query", "attention.slef"]), bert())
    with pytest.raises(ValueError, match=r"layer\.7"):
        match(Plan.uniform("tile", 0.5, ignore=["encoder.layer.7"]), bert())
    with pytest.raises(ValueError, match=r"layer\.1"):
        match(Plan.attention_aware(CONFIGS["bert"], 0.5), bert(layers=1))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2"])
def test_attention_aware_assignment(family: str) -> None:
    plan = Plan.attention_aware(CONFIGS[family], 0.8, precompute=False)
    per_layer = [str(e.pattern) for e in plan.entries[:6]]
    assert per_layer == ["tile:16x16", "tile:16x16", "row", *["tile:16x16"] * 3]
    merged = Plan.attention_aware(CONFIGS[family], 0.8, precompute=True)
    layers = len(merged.precompute)
    assert merged.precompute == (True,) * layers
    assert len(merged.entries) == 5 * layers  # W_V stays dense
    assert [str(e.pattern) for e in merged.entries[:3]] == ["tile:16x16", "tile:16x16", "row"]
    assert merged.entries[2].target.endswith(("output.dense", "out_lin", "c_proj"))


def test_attention_aware_names_exist_in_each_layout() -> None:
    assert len(match(Plan.attention_aware(CONFIGS["bert"], 0.5), bert())) == 12
    assert len(match(Plan.attention_aware(CONFIGS["roberta"], 0.5), bert(prefix="roberta."))) == 12
    assert len(match(Plan.attention_aware(CONFIGS["gpt2"], 0.5), gpt2())) == 6
    shapes: Shapes = {"distilbert.embeddings.word_embeddings.weight": (50, 32)}
    for i in range(2):
        layer = f"distilbert.transformer.layer.{i}."
        shapes |= {f"{layer}attention.{n}_lin.weight": (32, 32) for n in ("q", "k", "v", "out")}
        shapes |= {f"{layer}ffn.lin1.weight": (64, 32), f"{layer}ffn.lin2.weight": (32, 64)}
    found = match(Plan.attention_aware(CONFIGS["distilbert"], 0.5), shapes)
    assert len(found) == 12
    assert len(match(Plan.uniform("tile", 0.5), shapes)) == 12


def test_precompute_is_decided_by_counted_work() -> None:
    config = CONFIGS["bert"]
    assert Plan.attention_aware(config, 0.8).precompute == (False, False)
    one_head = Plan.attention_aware({**config, "num_attention_heads": 1}, 0.8)
    assert one_head.precompute == (True, True)
    for hidden, heads, sparsity in itertools.product((64, 384), (1, 2, 12), (0.1, 0.5, 0.9, 0.97)):
        chosen = {
            attention_multiply_adds(
                hidden, heads, 128, value_sparsity=0.0, output_sparsity=sparsity,
                precompute=True, kept_heads=left,
            )
            < attention_multiply_adds(
                hidden, heads, 128, value_sparsity=sparsity, output_sparsity=sparsity,
                precompute=False, kept_heads=left,
            )
            for left in range(1, heads + 1)
        }  # fmt: skip
        assert len(chosen) == 1  # however many are left
        shape = {**config, "hidden_size": hidden, "num_attention_heads": heads}
        assert set(Plan.attention_aware(shape, sparsity).precompute) == chosen
    # The paper's comparison: merged at a higher sparsity than apart.
    apart = attention_multiply_adds(
        768, 12, 128, value_sparsity=0.5, output_sparsity=0.5, precompute=False
    )
    assert apart == 128 * (0.5 * 768 * 768 * 2 + 128 * 0.5 * 768)
    merged = attention_multiply_adds(
        768, 12, 128, value_sparsity=0.0, output_sparsity=0.8, precompute=True
    )
    assert merged == pytest.approx(128 * 12 * 0.2 * 768 * (768 + 128))
    assert merged > apart


def test_attention_aware_bad_configs() -> None:
    with pytest.raises(ValueError, match="model_type is 't5'"):
        Plan.attention_aware({"model_type": "t5"}, 0.5)
    with pytest.raises(ValueError, match="hidden_size or dim or n_embd"):
        Plan.attention_aware({"model_type": "bert", "num_hidden_layers": 2}, 0.5)
    with pytest.raises(ValueError, match="precompute"):
        Plan.attention_aware(CONFIGS["bert"], 0.5, precompute="maybe")  # type: ignore[arg-type]


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan")])
def test_sparsity_outside_its_range(sparsity: float) -> None:
    with pytest.raises(ValueError, match="sparsity"):
        Plan.uniform("tile", sparsity)
    with pytest.raises(ValueError, match="sparsity"):
        Plan.attention_aware(CONFIGS["bert"], sparsity)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"sparsity is '0\.5'"):
        Plan.uniform("tile", "0.5")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="targets is the string 'query'"):
        Plan.uniform("tile", 0.5, targets="query")
    with pytest.raises(ValueError, match="no valid expression"):
        Plan.uniform("tile", 0.5, targets=["re:("])
    with pytest.raises(ValueError, match="targets is empty"):
        Plan.uniform("tile", 0.5, targets=[])
    with pytest.raises(ValueError, match="pattern is 'tiles'"):
        Plan.uniform("tiles", 0.5)


def test_json_round_trip(tmp_path: Path) -> None:
    for plan in (
        Plan.uniform("tile:32x16", 0.5, ignore=["re:layer\\.0"]),
        Plan.attention_aware(CONFIGS["gpt2"], 0.9, precompute=True),
    ):
        plan.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json") == plan
    assert plan.with_sparsity(0.25).entries[0].sparsity == 0.25


def test_a_newer_plan_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "tomorrow.json"
    Plan.uniform("tile", 0.5).save(path)
    data = json.loads(path.read_text())
    data["version"] = 3
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"tomorrow\.json: version is 3, expected at most 2"):
        Plan.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "format"),
        ({"version": "1"}, "version"),
        ({"entries": None}, "entries"),
        ({"entries": []}, "empty"),
        ({"entries": [{"target": "a", "pattern": "tile"}]}, "sparsity"),
        ({"entries": [{"target": "a", "pattern": "blob", "sparsity": 0.5}]}, "blob"),
        ({"entries": [{"target": "a", "pattern": "tile", "sparsity": 2}]}, "sparsity is 2"),
        ({"entries": ["a"]}, "damaged"),
        ({"ignore": "a"}, "ignore"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps({**Plan.uniform("tile", 0.5).to_dict(), **change}))
    with pytest.raises(ValueError, match=message) as caught:
        Plan.load(path)
    assert "damaged.json" in str(caught.value)


def test_truncated_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    Plan.uniform("tile", 0.5).save(path)
    path.write_text(path.read_text()[:40])
    with pytest.raises(ValueError, match=r"plan\.json: not valid JSON"):
        Plan.load(path)
    with pytest.raises(FileNotFoundError):
        Plan.load(tmp_path / "absent.json")


def test_a_failed_save_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    old = Plan.uniform("tile", 0.5)
    old.save(path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        Plan.uniform("row", 0.9).save(path)
    assert caught.value.filename == str(path)
    monkeypatch.undo()
    assert Plan.load(path) == old
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    with pytest.raises(FileNotFoundError) as missing:
        old.save(tmp_path / "no folder" / "plan.json")
    assert missing.value.filename == str(tmp_path / "no folder" / "plan.json")


def test_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "import spatile.sparsity as s; print(len(s.Plan.uniform('tile', 0.5).entries))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
