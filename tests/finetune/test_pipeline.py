"""The main job on a small model: what a run leaves, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spatile.finetune import RunFolder, finetune
from spatile.finetune.data import load_task
from spatile.inference import Encoder, Predictions
from spatile.patterns import Tile
from spatile.report import render_text
from spatile.sparsity import Plan

from .conftest import TINY, Finished, write_data, write_model

SHORT: dict[str, Any] = {
    **TINY,
    "epochs_dense": 1.0,
    "epochs_reweighted": 1.0,
    "epochs_retrain": 1.0,
    "timing_rounds": 0,
}


def logits_of(folder: Path, data: Path) -> np.ndarray[Any, Any]:
    """Logits on dev by transformers alone, row by row, without padding."""
    import torch
    import transformers

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


def zero_tiles(w: np.ndarray[Any, Any]) -> int:
    rows, cols = w.shape
    return int((~w.reshape(rows // 16, 16, cols // 16, 16).any(axis=(1, 3))).sum())


def weights(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    from safetensors.numpy import load_file

    return dict(load_file(folder / "model.safetensors"))


# ---- what a run leaves


@pytest.mark.parametrize("stage", ["dense", "reweighted", "pruned", "retrained"])
def test_every_stage_is_a_checkpoint_with_the_logits_that_were_scored(
    finished: Finished, tiny_data: Path, stage: str
) -> None:
    """For the dense stage this also says that the λ = 0 comparison put the weights back."""
    found = logits_of(finished.folder / "stages" / stage, tiny_data)
    np.testing.assert_allclose(RunFolder.open(finished.folder).logits(stage), found, atol=1e-5)


def test_half_of_the_tiles_are_zero_after_pruning_and_stay_zero(finished: Finished) -> None:
    for stage, expected in (("reweighted", 0), ("pruned", 8), ("retrained", 8)):
        found = weights(finished.folder / "stages" / stage)
        squares = [w for n, w in found.items() if "attention" in n and w.shape == (64, 64)]
        assert [zero_tiles(w) for w in squares] == [expected] * 8, stage
    pruned, retrained = (weights(finished.folder / "stages" / s) for s in ("pruned", "retrained"))
    moved = [n for n, w in pruned.items() if not np.array_equal(w, retrained[n])]
    assert "bert.encoder.layer.0.output.dense.weight" in moved


def test_embeddings_and_head_are_never_pruned(finished: Finished) -> None:
    found = weights(finished.folder / "stages" / "retrained")
    for name in ("bert.embeddings.word_embeddings.weight", "bert.pooler.dense.weight"):
        assert zero_tiles(found[name][:32]) == 0, name
    assert (found["classifier.weight"] != 0).all()


@pytest.mark.parametrize("which", ["finished", "finished_pairs"])
def test_the_packed_model_says_what_the_trained_one_says(
    which: str, request: pytest.FixtureRequest
) -> None:
    run: Finished = request.getfixturevalue(which)
    data = Path(run.report["settings"]["data"])
    dev = load_task(data).dev
    found = Encoder.load(run.folder / "packed").predict(dev.texts, dev.pairs).logits
    expected = logits_of(run.folder / "stages" / "retrained", data)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert run.report["agreement"]["packed"]["max_difference"] < 1e-4


def test_the_report_on_disk_is_the_one_returned(finished: Finished) -> None:
    assert json.loads((finished.folder / "report.json").read_text("utf-8")) == finished.report
    assert (finished.folder / "report.html").stat().st_size > 10_000


def test_the_report_names_every_stage_with_intervals_and_the_floor(finished: Finished) -> None:
    scores = finished.report["scores"]
    stages = ["pretrained", "lambda_zero", "dense", "reweighted", "pruned", "retrained"]
    assert sorted(scores) == sorted(stages)
    for found in (*scores.values(), finished.report["floor"]):
        for metric in ("accuracy", "f1"):
            score = found[metric]
            assert score["low"] <= score["value"] <= score["high"]
            assert score["n"] == 24
    labels = load_task(Path(finished.report["settings"]["data"])).dev.labels
    share = max(np.mean(labels == 0), np.mean(labels == 1))
    assert finished.report["floor"]["accuracy"]["value"] in (share, 1 - share)


def test_the_report_says_what_the_penalty_did(finished: Finished) -> None:
    lasso = finished.report["pruning"]["reweighted"]
    assert lasso["acted"]
    assert lasso["norm_ratio"]["pruned"] < 0.95
    assert lasso["energy_removed"] < lasso["energy_removed_without"]
    assert 0 < lasso["mask_agreement"]["all"] < 1
    norms = finished.report["pruning"]["norms"]
    assert {"reweighted_start", "before_prune", "after_prune", "end"} <= set(norms)
    assert norms["end"]["zeros"]["tile:16x16"] == norms["after_prune"]["zeros"]["tile:16x16"] > 0
    assert "pruned - lambda_zero" in finished.report["differences"]


def test_the_report_counts_what_is_left(finished: Finished) -> None:
    report = finished.report
    rows = report["summary"]["packed"]["matrices"]
    assert [r["sparsity"] for r in rows] == [0.5] * 12
    sizes = report["sizes"]
    on_disk = finished.folder / "stages" / "dense" / "model.safetensors"
    assert sizes["dense checkpoint"] > on_disk.stat().st_size > sizes["packed"]
    assert report["multiply_adds"]["packed"] < 0.6 * report["multiply_adds"]["dense"]
    for size in report["timing"]["sizes"]:
        times = size["milliseconds"]
        assert list(times) == ["torch dense", "spatile dense", "spatile packed"]
        assert all(0 < t["min"] <= t["median"] for t in times.values())
    assert [s["batch_size"] for s in report["timing"]["sizes"]] == [1, 32]
    assert report["timing"]["threads"] == 1


def test_regression_on_pairs_is_scored_by_correlation(finished_pairs: Finished) -> None:
    report = finished_pairs.report
    assert report["data"]["metrics"] == ["pearson", "spearman"]
    assert report["data"]["pairs"]
    assert report["floor"]["pearson"]["value"] is None
    assert report["summary"]["packed"]["merged_layers"] == [0, 1]
    assert "undefined" in render_text(report)


# ---- ways to run it


@pytest.mark.parametrize(
    "settings",
    [
        {"pattern": "row"},
        {"pattern": "column", "method": "gradient", "strength": 1e-3},
        {"pattern": "element", "scope": "global"},
        {"pattern": "attention-aware", "attention": "sdpa"},
        {"epochs_dense": 0.0},
        {"epochs_reweighted": 0.0},
        {"epochs_retrain": 0.0},
        {"epochs_dense": 0.0, "epochs_reweighted": 0.0},
        {"bf16": True},
        {"saliency": "taylor", "scope": "global", "lr_dense": 2e-3, "lr_retrain": 5e-4},
        {"saliency": "second-order", "prunings": 3, "distill": 0.5},
        {"saliency": "second-order", "pattern": "attention-aware", "distill_hidden": 1.0},
        {"saliency": "movement", "epochs_reweighted": 0.0, "distill_attention": 1.0},
    ],
    ids=lambda s: " ".join(f"{k}={v}" for k, v in s.items()),
)
def test_other_settings_run_to_a_packed_model_that_agrees(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    report = finetune(tiny_model, tiny_data, out=tmp_path / "run", **{**SHORT, **settings})
    assert report["summary"]["packed"]["sparsity"] == pytest.approx(0.5, abs=0.02)
    assert render_text(report)


def test_heads_neurons_and_layers_go_before_tiles(
    tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    settings = {**SHORT, "saliency": "second-order", "scope": "global", "distill_hidden": 1.0}
    report = finetune(
        tiny_model,
        tiny_data,
        out=tmp_path / "run",
        **{**settings, "heads": 0.5, "neurons": 0.25, "layers": 0.5, "epochs_reweighted": 0.0},
    )
    packed = Encoder.load(tmp_path / "run" / "packed")
    assert packed.architecture.n_layers == 1
    # Half of the tiles of one layer of two, with 2 of 4 heads of 64 × 64 and 72 of 96 neurons.
    left = 0.5 * (4 * 32 * 64 + 2 * 72 * 64) / (2 * (4 * 64 * 64 + 2 * 96 * 64))
    assert report["summary"]["packed"]["sparsity"] == pytest.approx(1 - left, abs=0.02)
    assert report["multiply_adds"]["packed"] < 0.25 * report["multiply_adds"]["dense"]
    assert len(report["pruning"]["structure"]["layers"]) == 1
    assert "1 of 2 layers stay, with 2 of 4 heads and 72 of 96 neurons" in render_text(report)


def test_whole_neurons_and_heads_go_by_and_by(
    tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    settings = {**SHORT, "saliency": "second-order", "prunings": 3, "epochs_reweighted": 0.0}
    report = finetune(
        tiny_model,
        tiny_data,
        out=tmp_path / "run",
        **{**settings, "pattern": "structure", "sparsity": 0.6},
    )
    shares = [p["pruned"] for p in report["pruning"]["prunings"]]
    assert shares == sorted(shares)
    assert len(shares) == 3
    assert shares[-1] == pytest.approx(0.6, abs=0.06)  # of 4 heads, none can go by halves
    assert report["summary"]["packed"]["sparsity"] == pytest.approx(shares[-1], abs=1e-6)
    assert report["multiply_adds"]["packed"] < 0.5 * report["multiply_adds"]["dense"]
    # A model that has lost parts is pruned on from what is left of it.
    on = finetune(
        tmp_path / "run" / "stages" / "retrained",
        tiny_data,
        out=tmp_path / "on",
        **{**settings, "epochs_dense": 0.0, "distill_hidden": 1.0},
    )
    left = (1 - shares[-1]) * (1 - settings["sparsity"])
    assert on["summary"]["packed"]["sparsity"] == pytest.approx(1 - left, abs=0.02)


def test_the_retraining_stage_skips_what_is_pruned_unless_told_not_to(
    finished: Finished, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    assert len(RunFolder.open(finished.folder).state["history"]["sparse"]) == 12
    scores = []
    for sparse in (True, False):
        out = tmp_path / f"{sparse}"
        settings = {**SHORT, "sparse": sparse, "lr": 1e-3}
        report = finetune(tiny_model, tiny_data, out=out, **settings)
        assert bool(RunFolder.open(out).state["history"]["sparse"]) == sparse
        scores.append(report["scores"])
    for stage in ("dense", "reweighted", "pruned"):
        assert scores[0][stage] == scores[1][stage]


def test_whose_products_a_run_uses_is_tried_once_and_noted(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from spatile.finetune import layers, training
    from spatile.torch import Dropout, Linear

    assert layers.faster_linear() in ("spatile", "torch")
    seen: list[set[type]] = []

    def noticed(run: RunFolder, model: torch.nn.Module) -> None:
        layers.use_layers(run, model)
        seen.append({type(m) for m in model.modules()})

    monkeypatch.setattr(training, "use_layers", noticed)
    for answer in ("spatile", "torch"):
        monkeypatch.setattr(layers, "faster_linear", lambda answer=answer: answer)
        out = tmp_path / answer
        finetune(tiny_model, tiny_data, out=out, **SHORT)
        run = RunFolder.open(out)
        assert run.state["linear"] == answer
        assert (Linear in seen[-1]) == (answer == "spatile")
        assert Dropout in seen[-1]
        # The trial's answer is kept, whatever it would be now.
        monkeypatch.setattr(layers, "faster_linear", lambda: pytest.fail("tried again"))
        layers.use_layers(run, torch.nn.Linear(2, 2))
    given = tmp_path / "given"
    finetune(tiny_model, tiny_data, out=given, **{**SHORT, "linear": "torch"})
    assert RunFolder.open(given).state["linear"] == "torch"


def test_a_plan_of_ones_own(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    plan = Plan.uniform(Tile(8, 8), 0.25, targets=["encoder.layer.1"])
    report = finetune(tiny_model, tiny_data, out=tmp_path / "run", plan=plan, **SHORT)
    rows = report["summary"]["packed"]["matrices"]
    assert [r["pattern"] for r in rows] == ["dense"] * 6 + ["tile:8x8"] * 6
    assert [r["sparsity"] for r in rows] == [0.0] * 6 + [0.25] * 6


def test_a_stage_that_changes_nothing_is_called_a_defect(
    tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    report = finetune(
        tiny_model, tiny_data, out=tmp_path / "run", **{**SHORT, "strength": 0.0, "lr": 1e-6}
    )
    assert not report["pruning"]["reweighted"]["acted"]
    assert "DEFECT: the reweighted stage changed nothing" in render_text(report)


def test_the_same_seed_gives_the_same_weights_and_another_one_others(
    tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        # On a busy machine the trial of "auto" may end otherwise from run to run.
        settings = {**SHORT, "seed": seed, "linear": "spatile"}
        finetune(tiny_model, tiny_data, out=tmp_path / name, **settings)
        found.append((tmp_path / name / "stages/retrained/model.safetensors").read_bytes())
    assert found[0] == found[1] != found[2]


# ---- what it refuses


def test_a_packed_model_that_disagrees_fails_the_run(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = Encoder.predict

    def off(self: Encoder, *args: Any, **more: Any) -> Predictions:
        found = predict(self, *args, **more)
        return Predictions(found.logits + np.float32(0.01), found.labels, found.probabilities)

    monkeypatch.setattr(Encoder, "predict", off)
    with pytest.raises(RuntimeError, match=r"packed model .* differ by 0.01 from PyTorch's"):
        finetune(tiny_model, tiny_data, out=tmp_path / "run", **SHORT)
    assert not (tmp_path / "run" / "report.json").exists()


def test_nan_does_not_pass_for_agreement() -> None:
    from spatile.finetune.finish import check_agreement

    with pytest.raises(RuntimeError, match="differ by nan"):
        check_agreement({"packed": {"max_difference": float("nan")}}, Path("run"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 65}, "max_length is 65, expected at most the 64 positions"),
        ({"plan": Plan.uniform("tile", 0.5, targets=["layer.7"])}, "no matrix matches 'layer.7'"),
        (
            {"epochs_dense": 0.0, "epochs_reweighted": 0.0, "epochs_retrain": 0.0},
            "expected at least one step of training",
        ),
        ({"saliency": "size"}, "saliency is 'size', expected one of 'auto', 'magnitude'"),
        ({"heads": 1.0}, r"heads is 1.0, expected a fraction in \[0, 1\)"),
        (
            {"heads": 0.5, "distill_attention": 1.0},
            "distill_attention is 1, expected 0 where heads",
        ),
        ({"twin": True, "neurons": 0.5}, "twin is True, expected False unless tiles"),
        ({"pattern": "structure", "heads": 0.5}, "pattern is 'structure', expected another one"),
        ({"prunings": 0}, "prunings is 0, expected a whole number ≥ 1"),
        ({"gradual": 1.5}, r"gradual is 1.5, expected a fraction in \[0, 1\]"),
        ({"distill_hidden": -1.0}, r"distill_hidden is -1.0, expected a weight ≥ 0"),
        ({"lr_retrain": 0.0}, r"lr_retrain is 0.0, expected a positive number"),
        (
            {"saliency": "second-order", "scope": "row-balanced"},
            "scope is 'row-balanced', expected 'matrix' or 'global'",
        ),
        ({"train_rows": 49}, "train_rows is 49, expected 1 to 48"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        finetune(tiny_model, tiny_data, out=tmp_path / "run", **{**SHORT, **settings})
    assert not (tmp_path / "run").exists()


def test_a_model_that_the_engine_cannot_run_is_refused_before_training(
    tiny_data: Path, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["hidden_act"] = "silu"
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises((NotImplementedError, ValueError), match="silu"):
        finetune(folder, tiny_data, out=tmp_path / "run", **SHORT)
    assert not (tmp_path / "run").exists()


def test_rows_in_both_train_and_dev_stop_the_run_unless_dropped(
    tiny_model: Path, tmp_path: Path
) -> None:
    data = write_data(tmp_path / "data")
    dev = (data / "dev.jsonl").read_text("utf-8")
    with (data / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write(dev.splitlines()[0] + "\n")
    with pytest.raises(ValueError, match=r"1 of 49 rows .* are also in"):
        finetune(tiny_model, data, out=tmp_path / "run", **SHORT)
    report = finetune(tiny_model, data, out=tmp_path / "run", **SHORT, overlap="drop")
    assert report["data"]["train_rows"] == 48
    assert "1 rows taken out" in render_text(report)


def test_a_folder_that_cannot_be_written_is_refused(
    tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        finetune(tiny_model, tiny_data, out=tmp_path / "file" / "run", **SHORT)


def test_without_a_penalty_the_twin_is_the_run_itself(
    tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Same start, batches and dropout: only then do differences come from the penalty."""
    settings = {**SHORT, "strength": 0.0, "twin": True, "distill": 0.3}
    report = finetune(tiny_model, tiny_data, out=tmp_path / "run", **settings)
    lasso = report["pruning"]["reweighted"]
    assert lasso["mask_agreement"]["all"] == 1.0
    assert lasso["energy_removed_without"] == pytest.approx(lasso["energy_removed"], rel=1e-6)
    assert report["scores"]["lambda_zero"] == report["scores"]["pruned"]
    run = RunFolder.open(tmp_path / "run")
    assert np.array_equal(run.logits("lambda_zero"), run.logits("pruned"))
    assert not (tmp_path / "run" / "twin").exists()
    assert "trained once more" in render_text(report)


def test_the_penalty_tells_the_run_from_its_twin(
    tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    report = finetune(tiny_model, tiny_data, out=tmp_path / "run", **SHORT, twin=True)
    lasso = report["pruning"]["reweighted"]
    assert lasso["mask_agreement"]["all"] < 1.0
    assert lasso["energy_removed"] < lasso["energy_removed_without"]
