"""What a run refuses, most of it before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spatile.finetune import finetune
from spatile.inference import Encoder, Predictions
from spatile.report import render_text
from spatile.sparsity import Plan

from .conftest import SHORT, write_data, write_model


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
