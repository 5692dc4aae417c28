"""What a run on a small model leaves: checkpoints, the packed model, the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spatile.finetune import RunFolder
from spatile.finetune.data import load_task
from spatile.inference import Encoder
from spatile.report import render_text

from .conftest import Finished, logits_of


def zero_tiles(w: np.ndarray[Any, Any]) -> int:
    rows, cols = w.shape
    return int((~w.reshape(rows // 16, 16, cols // 16, 16).any(axis=(1, 3))).sum())


def weights(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    from safetensors.numpy import load_file

    return dict(load_file(folder / "model.safetensors"))


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
