"""`spatile finetune`, and info, report and export of the run that it leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from spatile.cli import main
from spatile.finetune.data import load_task
from spatile.inference import Encoder
from tests.finetune.conftest import Finished

from .conftest import Capture, one_line


def test_finetune_prints_json_alone_on_standard_output(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    arguments = ["finetune", "--model", tiny_model, "--data", tiny_data, "--sparsity", 0.5]
    arguments += ["--epochs-dense", 1, "--epochs-reweighted", 1, "--epochs-retrain", 1]
    arguments += ["--max-length", 64, "--timing-rounds", 0, "--threads", 1]
    assert main([str(a) for a in [*arguments, "--out", tmp_path / "run", "--json"]]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["data"]["dev_rows"] == 24
    assert "dense: accuracy" in err


def test_info(capsys: Capture) -> None:
    import spatile

    assert main(["info"]) == 0
    assert f"spatile {spatile.__version__}" in capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == spatile.info()


def test_info_of_a_model(finished: Finished, capsys: Capture) -> None:
    assert main(["info", str(finished.folder)]) == 0
    assert "50.0% of the weights pruned" in capsys.readouterr().out


def test_report_prints_text_json_and_html(
    finished: Finished, tmp_path: Path, capsys: Capture
) -> None:
    run = str(finished.folder)
    assert main(["report", run]) == 0
    assert "Scores on dev after each stage" in capsys.readouterr().out
    assert main(["report", run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == finished.report
    assert main(["report", run, "--html", str(tmp_path / "r.html")]) == 0
    html = (tmp_path / "r.html").read_text("utf-8")
    assert html == (finished.folder / "report.html").read_text("utf-8")


def test_report_of_an_unfinished_run_says_how_to_finish_it(
    finished: Finished, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copy(finished.folder / "run.json", tmp_path)
    assert main(["report", str(tmp_path)]) == 1
    assert "has not come to its end" in one_line(capsys)
    assert main(["predict", str(tmp_path), "word1"]) == 1
    assert "--resume" in one_line(capsys)


def test_export_writes_what_from_pretrained_reads(
    finished: Finished, tiny_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    import torch
    import transformers

    out = tmp_path / "out"
    assert main(["export", str(finished.folder), str(out)]) == 0
    capsys.readouterr()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert model.config.id2label == {0: "high", 1: "low"}
    texts = load_task(tiny_data).dev.texts[:4]
    with torch.no_grad():
        logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.numpy()
    found = Encoder.load(finished.folder / "packed").predict(texts).logits
    np.testing.assert_allclose(logits, found, atol=1e-4)
    capsys.readouterr()
    assert main(["export", str(finished.folder), str(out)]) == 1
    assert "expected an empty or new folder" in one_line(capsys)
