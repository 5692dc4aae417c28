"""A run on a small model with other settings, plans and seeds, and beside its twin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spatile.finetune import RunFolder, finetune
from spatile.inference import Encoder
from spatile.patterns import Tile
from spatile.report import render_text
from spatile.sparsity import Plan

from .conftest import SHORT, Finished


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
    assert "\na plan with 1 entry; epochs" in render_text(report)


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
