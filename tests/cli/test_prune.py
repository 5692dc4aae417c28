"""`spatile prune`: patterns, scopes and structure, by norms and on texts, without training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from spatile.cli import main
from spatile.finetune.data import load_task
from spatile.finetune.one_shot import prune_checkpoint
from spatile.inference import Encoder
from spatile.sparsity import Plan
from tests.finetune.conftest import Finished

from .conftest import Capture, one_line


def test_prune_packs_without_training_and_scores_before_and_after(
    finished: Finished, tiny_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    dense, out = finished.folder / "stages" / "dense", tmp_path / "small"
    arguments = ["prune", "--model", str(dense), "--sparsity", "0.25", "--out", str(out)]
    assert main([*arguments, "--data", str(tiny_data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [m["sparsity"] for m in found["summary"]["matrices"]] == [0.25] * 12
    before = found["scores"]["dense"]["accuracy"]["value"]
    assert before == finished.report["scores"]["dense"]["accuracy"]["value"]
    assert 0 <= found["scores"]["pruned"]["accuracy"]["value"] <= 1
    assert main(["predict", str(out), "word1"]) == 0
    capsys.readouterr()
    assert main(arguments) == 1
    assert "expected an empty or new folder" in one_line(capsys)


def test_prune_of_the_dense_stage_is_the_λ_zero_of_the_run(
    finished: Finished, tiny_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Two ways to the same masks: PyTorch's weights in the run, the checkpoint's here."""
    dense, out = finished.folder / "stages" / "dense", tmp_path / "small"
    arguments = ["prune", "--model", str(dense), "--sparsity", "0.5", "--out", str(out)]
    assert main([*arguments, "--data", str(tiny_data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["scores"]["pruned"]
    assert found == finished.report["scores"]["lambda_zero"]


@pytest.mark.parametrize("scope", ["global", "row-balanced"])
@pytest.mark.parametrize("pattern", ["row", "element"])
def test_prune_takes_every_scope(
    finished: Finished, tmp_path: Path, capsys: Capture, scope: str, pattern: str
) -> None:
    dense, out = finished.folder / "stages" / "dense", tmp_path / "small"
    arguments = ["prune", "--model", str(dense), "--sparsity", "0.5", "--out", str(out)]
    assert main([*arguments, "--scope", scope, "--pattern", pattern, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["summary"]
    assert found["sparsity"] == pytest.approx(0.5, abs=0.03)


def test_prune_refuses_data_of_other_classes(
    finished: Finished, tmp_path: Path, capsys: Capture
) -> None:
    for split in ("train", "dev"):
        rows = "sentence\tlabel\n" + "".join(f"{split} word{i}\tc{i % 3}\n" for i in range(6))
        (tmp_path / f"{split}.tsv").write_text(rows, encoding="utf-8")
    arguments = ["prune", "--model", str(finished.folder / "stages" / "dense"), "--sparsity=0.5"]
    assert main([*arguments, "--out", str(tmp_path / "o"), "--data", str(tmp_path)]) == 1
    assert "the model's classes are high, low, expected c0, c1, c2" in one_line(capsys)


def test_prune_on_texts_changes_logits_less_than_by_norm(
    finished: Finished, tiny_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    dense = finished.folder / "stages" / "dense"
    lines = load_task(str(tiny_data)).train.texts
    (tmp_path / "texts.txt").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    wanted = Encoder.load(dense).predict(lines).logits
    off = {}
    for name, calibration in (
        ("norm", []),
        ("file", ["--calibration", str(tmp_path / "texts.txt")]),
        ("data", ["--calibration", str(tiny_data), "--calibration-rows", "40"]),
        ("own", ["--calibration", str(tiny_data), "--saliency", "reconstruction"]),
    ):
        out = tmp_path / name
        arguments = ["prune", "--model", str(dense), "--sparsity", "0.5"]
        assert main([*arguments, *calibration, "--out", str(out), "--json"]) == 0
        summary = json.loads(capsys.readouterr().out)["summary"]
        assert summary["sparsity"] == pytest.approx(0.5, abs=0.03)
        # By norm, each matrix alone; on texts, all of them together.
        shares = {round(m["sparsity"], 3) for m in summary["matrices"]}
        assert (shares == {0.5}) == (name == "norm")
        off[name] = float(np.abs(Encoder.load(out).predict(lines).logits - wanted).mean())
    assert off["file"] < 0.5 * off["norm"]
    assert off["data"] < 0.5 * off["norm"]
    assert off["data"] < off["own"]


@pytest.mark.parametrize("sparsity", ["0", "0.5"])
def test_prune_takes_heads_neurons_and_layers_away(
    finished: Finished, tiny_data: Path, tmp_path: Path, capsys: Capture, sparsity: str
) -> None:
    dense = finished.folder / "stages" / "dense"
    whole = Encoder.load(dense).architecture.structure
    arguments = ["prune", "--model", str(dense), f"--sparsity={sparsity}", "--layers", "0.5"]
    arguments += ["--heads", "0.5", "--neurons", "0.5", "--scope", "matrix"]
    arguments += ["--out", str(tmp_path / "small")]
    assert main(arguments) == 1
    assert "calibration is None, expected texts to choose heads by" in one_line(capsys)
    assert main([*arguments, "--calibration", str(tiny_data), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert len(summary["layers"]) == whole.n_layers // 2
    small = Encoder.load(tmp_path / "small")
    for kept in small.architecture.structure.layers:
        assert len(kept.heads) == whole.n_heads // 2
        assert len(kept.neurons) == whole.n_neurons // 2
    patterns = {matrix["pattern"] for matrix in summary["matrices"]}
    assert patterns == ({"dense"} if sparsity == "0" else {"tile:16x16"})
    # What is small already is pruned on: texts choose among what is left.
    main(["export", str(tmp_path / "small"), str(tmp_path / "checkpoint")])
    arguments = ["prune", "--model", str(tmp_path / "checkpoint"), "--sparsity=0.25"]
    for name, calibration in (("norm", []), ("texts", ["--calibration", str(tiny_data)])):
        assert main([*arguments, *calibration, "--out", str(tmp_path / name)]) == 0
        again = Encoder.load(tmp_path / name)
        assert again.architecture.structure == small.architecture.structure
        assert again.summary().sparsity == pytest.approx(1 - 0.25 * 0.75, abs=0.01)


def test_prune_names_itself_in_errors(
    finished: Finished, tiny_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    arguments = ["prune", "--model", str(finished.folder / "stages" / "dense"), "--sparsity=0.5"]
    arguments += ["--calibration", str(tiny_data), "--scope", "row-balanced"]
    assert main([*arguments, "--out", str(tmp_path / "o")]) == 1
    assert "prune: scope is 'row-balanced', expected 'matrix' or 'global'" in one_line(capsys)


def test_prune_on_an_empty_file_says_so(
    finished: Finished, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "none.txt").write_text("\n \n", encoding="utf-8")
    arguments = ["prune", "--model", str(finished.folder / "stages" / "dense"), "--sparsity=0.5"]
    arguments += ["--out", str(tmp_path / "o"), "--calibration", str(tmp_path / "none.txt")]
    assert main(arguments) == 1
    assert "none.txt, a file without a text" in one_line(capsys)
    assert not (tmp_path / "o").exists()


def test_a_saliency_without_texts_is_refused(
    finished: Finished, tmp_path: Path, capsys: Capture
) -> None:
    arguments = ["prune", "--model", str(finished.folder / "stages" / "dense"), "--sparsity=0.5"]
    assert main([*arguments, "--out", str(tmp_path / "o"), "--saliency", "reconstruction"]) == 2
    assert "--saliency is given without --calibration, to which it belongs" in one_line(capsys)
    assert not (tmp_path / "o").exists()
    with pytest.raises(ValueError, match="None, expected texts for saliency 'reconstruction'"):
        prune_checkpoint(finished.folder, tmp_path / "o", sparsity=0.5, saliency="reconstruction")


@pytest.mark.parametrize("flag", ["calibration-rows=8", "damping=0.1", "max-length=8"])
def test_options_of_texts_that_are_not_given_are_refused(
    tmp_path: Path, capsys: Capture, flag: str
) -> None:
    arguments = ["prune", "--model", "m", "--sparsity=0.5", "--out", str(tmp_path / "o")]
    assert main([*arguments, f"--{flag}"]) == 2
    name = flag.partition("=")[0]
    assert f"--{name} is given without --calibration, to which it belongs" in one_line(capsys)
    assert main([*arguments, "--overlap=drop"]) == 2
    assert "--overlap is given without --data or --calibration" in one_line(capsys)


def test_a_plan_says_how_sparse(finished: Finished, tmp_path: Path, capsys: Capture) -> None:
    Plan.uniform("row", 0.25).save(tmp_path / "plan.json")
    arguments = ["prune", "--model", str(finished.folder / "stages" / "dense")]
    arguments += ["--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "o")]
    for flag in ("--sparsity=0.5", "--pattern=tile", "--precompute=off"):
        assert main([*arguments, flag]) == 2
        name = flag.partition("=")[0]
        assert f"prune: {name} is given with --plan, expected one of the two" in one_line(capsys)
    assert main([*arguments, "--json"]) == 0
    matrices = json.loads(capsys.readouterr().out)["summary"]["matrices"]
    assert {(m["pattern"], m["sparsity"]) for m in matrices} == {("row", 0.25)}
    assert main([*arguments[:3], "--out", str(tmp_path / "p")]) == 2
    assert "--sparsity is missing, expected it or --plan" in one_line(capsys)


def test_texts_longer_than_the_model_takes_are_cut(
    finished: Finished, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "texts.txt").write_text("word1 word2 " * 200, encoding="utf-8")
    arguments = ["prune", "--model", str(finished.folder / "stages" / "dense"), "--sparsity=0.5"]
    arguments += ["--calibration", str(tmp_path / "texts.txt"), "--max-length=512"]
    assert main([*arguments, "--out", str(tmp_path / "o")]) == 0


def test_a_model_without_a_head_is_pruned_for_its_hidden_states(
    tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Seen through a head that nobody has trained, what matters would be a matter of luck."""
    source = tmp_path / "encoder"
    transformers.AutoModel.from_pretrained(tiny_model).save_pretrained(source)
    transformers.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(source)
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    arguments = ["prune", "--model", str(source), "--sparsity", "0.5"]
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        out = tmp_path / str(seed)
        assert main([*arguments, "--calibration", str(tiny_data), "--out", str(out)]) == 0
        found.append(Encoder.load(out))
    for name, mask in found[0].masks.items():
        np.testing.assert_array_equal(mask, found[1].masks[name])
    assert main([*arguments, "--scope", "global", "--out", str(tmp_path / "norm")]) == 0
    texts = load_task(str(tiny_data)).dev.texts
    folders = source, tmp_path / "1", tmp_path / "norm"
    whole, small, norm = (Encoder.load(folder).encode(texts).pooled for folder in folders)
    assert found[0].pooling == "mean"
    assert np.abs(small - whole).mean() < np.abs(norm - whole).mean()
    data = ["--data", str(tiny_data), "--out", str(tmp_path / "scored")]
    assert main([*arguments, *data]) == 1
    assert not (tmp_path / "scored").exists()


def test_two_classes_that_the_configuration_leaves_out(
    finished: Finished, tiny_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    """As transformers 4 writes it where the labels have no names."""
    source = tmp_path / "dense"
    shutil.copytree(finished.folder / "stages" / "dense", source)
    config = json.loads((source / "config.json").read_text("utf-8"))
    for key in ("id2label", "label2id"):
        config.pop(key)
    (source / "config.json").write_text(json.dumps(config), "utf-8")
    arguments = ["prune", "--model", str(source), "--sparsity", "0.5", "--data", str(tiny_data)]
    assert main([*arguments, "--out", str(tmp_path / "small")]) == 0
    assert "dense: accuracy" in capsys.readouterr().out
