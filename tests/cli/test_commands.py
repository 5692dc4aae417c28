"""The command line: what it prints, and its exit codes 0 (done), 1 (failed), 2 (used wrongly)."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spatile.cli import finetune as finetune_command
from spatile.cli import main
from spatile.finetune.data import load_task
from spatile.finetune.settings import Settings
from spatile.inference import Encoder
from tests.finetune.conftest import Finished

COMMANDS = ("finetune", "prune", "sweep", "predict", "explain", "bench", "report", "export", "info")
Capture = pytest.CaptureFixture[str]


def code_of(*arguments: object) -> int:
    """The exit code, whether ``main`` returns it or argparse exits with it."""
    try:
        return main([str(a) for a in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def one_line(capsys: Capture) -> str:
    """Standard error, which is one line that begins with the program's name."""
    err = capsys.readouterr().err
    assert err.startswith("spatile: ")
    assert err.count("\n") == 1
    return err


# ---- help and usage


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str, capsys: Capture) -> None:
    assert code_of(command, "--help") == 0
    assert f"examples:\n  spatile {command}" in capsys.readouterr().out


def test_help_states_the_defaults_that_settings_have() -> None:
    parser = finetune_command.add(argparse.ArgumentParser().add_subparsers())
    defaults = {f.name: f.default for f in dataclasses.fields(Settings)}
    stated = {
        action.dest: float(number[1])
        for action in parser._actions
        if action.dest in defaults and (number := re.search(r"\(([\d.]+)\)$", action.help or ""))
    }
    assert "prunings" in stated
    assert stated == {name: defaults[name] for name in stated}


def test_the_help_of_all_lists_the_commands(capsys: Capture) -> None:
    assert code_of("--help") == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["finetune"],
        ["finetune", "--out", "run"],
        ["finetune", "--model", "m", "--data", "d", "--sparsity", "1.0", "--out", "run"],
        ["finetune", "--model", "m", "--data", "d", "--sparsity", "x", "--out", "run"],
        ["finetune", "--model=m", "--data=d", "--sparsity=.5", "--strength=much", "--out=run"],
        ["finetune", "--model=m", "--data=d", "--sparsity=.5", "--pattern=round", "--out=run"],
        ["prune", "--model", "m", "--out", "o"],
        ["predict"],
        ["predict", "m", "text", "--file", "f"],
        ["predict", "m", "text", "--batch-size", "0"],
        ["export", "m"],
        ["bench"],
        ["bench", "everything"],
        ["bench", "linear", "--threads", "0"],
        ["bench", "linear", "--seconds", "nan"],
        ["bench", "linear", "--tier", "avx1024"],
        ["bench", "linear", "--peers", "numpy"],
        ["bench", "linear", "--json", "nowhere/rows.json"],
    ],
    ids=" ".join,
)
def test_wrong_use_exits_with_2(
    arguments: list[str], capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    assert code_of(*arguments) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune", "--model", "./no", "--data", "d", "--sparsity", ".5", "--out", "run"],
         "model is './no', expected a checkpoint's folder"),
        (["finetune", "--resume", "--out", "nowhere"], "nowhere: no run.json"),
        (["prune", "--model", "./no", "--sparsity", ".5", "--out", "o"], "prune: model is './no'"),
        (["predict", "nowhere", "text"], "nowhere: no such folder"),
        (["report", "nowhere"], "expected the folder of a run"),
        (["export", "nowhere", "out"], "nowhere: no such folder"),
        (["info", "nowhere"], "nowhere: no such folder"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else None,
)  # fmt: skip
def test_failure_exits_with_1_and_one_line(
    arguments: list[str],
    message: str,
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert code_of(*arguments) == 1
    assert message in one_line(capsys)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        main(["report", str(tmp_path / "nowhere"), "--debug"])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ModuleNotFoundError("x", name="torch"),
         'needs torch, which is not installed: pip install "spatile[train]"'),
        (ModuleNotFoundError("x", name="tokenizers"),
         'needs tokenizers, which is not installed: pip install "spatile[inference]"'),
        (OSError(28, "No space left on device", "run/model"), "run/model: No space left on device"),
        (ValueError("two\n  lines"), "two lines"),
        (MemoryError(), "out of memory"),
        (ValueError(), "ValueError"),
    ],
)  # fmt: skip
def test_errors_become_one_line(
    error: Exception, line: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> dict[str, Any]:
        raise error

    monkeypatch.setattr("spatile.info", fail)
    assert main(["info"]) == 1
    assert one_line(capsys) == f"spatile: {line}\n"


# ---- info


def test_info(capsys: Capture) -> None:
    import spatile

    assert main(["info"]) == 0
    assert f"spatile {spatile.__version__}" in capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == spatile.info()


def test_info_of_a_model(finished: Finished, capsys: Capture) -> None:
    assert main(["info", str(finished.folder)]) == 0
    assert "50.0% of the weights pruned" in capsys.readouterr().out


# ---- predict


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_predict_agrees_with_the_encoder(
    finished: Finished, tiny_data: Path, capsys: Capture, compute: str
) -> None:
    texts = load_task(tiny_data).dev.texts[:3]
    found = Encoder.load(finished.folder / "packed", compute=compute).predict(texts)
    packed = str(finished.folder / "packed")
    assert main(["predict", packed, *texts, "--compute", compute, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["text"] for r in rows] == texts
    assert [r["label"] for r in rows] == found.labels
    assert found.probabilities is not None
    for row, chances in zip(rows, found.probabilities, strict=True):
        assert list(row["probabilities"]) == ["high", "low"]
        np.testing.assert_allclose(list(row["probabilities"].values()), chances, rtol=1e-6)


def test_predict_reads_files_and_standard_input(
    finished: Finished, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = b"word1 word2\r\n\nword30\n"
    (tmp_path / "texts.txt").write_bytes(b"\xef\xbb\xbf" + raw)
    assert main(["predict", str(finished.folder), "--file", str(tmp_path / "texts.txt")]) == 0
    from_file = capsys.readouterr().out
    assert [line.split("\t")[-1] for line in from_file.splitlines()] == ["word1 word2", "word30"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    assert main(["predict", str(finished.folder)]) == 0
    assert capsys.readouterr().out == from_file


def test_predict_of_a_run_on_pairs_takes_texts_by_twos(
    finished_pairs: Finished, tmp_path: Path, capsys: Capture
) -> None:
    run = str(finished_pairs.folder)
    assert main(["predict", run, "word1 word2", "word3", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["text"], row["pair"]) == ("word1 word2", "word3")
    (tmp_path / "pairs.tsv").write_text("word1 word2\tword3\n", encoding="utf-8")
    packed = str(finished_pairs.folder / "packed")
    arguments = ["predict", packed, "--pairs", "--file", str(tmp_path / "pairs.tsv"), "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["value"] == pytest.approx(row["value"], rel=1e-5)


def test_predict_names_what_is_wrong_with_its_input(
    finished_pairs: Finished, tmp_path: Path, capsys: Capture
) -> None:
    run = str(finished_pairs.folder)
    assert main(["predict", run, "a", "b", "c"]) == 2
    assert "3 texts are given, expected an even number" in one_line(capsys)
    (tmp_path / "pairs.tsv").write_text("a\tb\na\n", encoding="utf-8")
    assert main(["predict", run, "--file", str(tmp_path / "pairs.tsv")]) == 1
    assert "pairs.tsv line 2 has 1 columns, expected 2" in one_line(capsys)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    assert main(["predict", run, "--file", str(tmp_path / "latin.txt")]) == 1
    assert "latin.txt is not UTF-8" in one_line(capsys)
    assert main(["predict", run, "--file", str(tmp_path / "none.txt")]) == 1
    assert "none.txt: No such file or directory" in one_line(capsys)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"\xff" * 100),
        ("spatile.json", b"{"),
        ("spatile.json", b'{"format": "spatile.encoder", "version": 99}'),
    ],
)
def test_a_damaged_model_is_one_line(
    finished: Finished, tmp_path: Path, capsys: Capture, file: str, content: bytes
) -> None:
    shutil.copytree(finished.folder / "packed", tmp_path / "packed")
    (tmp_path / "packed" / file).write_bytes(content)
    assert main(["predict", str(tmp_path / "packed"), "word1"]) == 1
    assert file in one_line(capsys)


# ---- report


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


# ---- export


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


# ---- prune


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


# ---- finetune


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
    ):
        out = tmp_path / name
        arguments = ["prune", "--model", str(dense), "--sparsity", "0.5", "--scope", "global"]
        assert main([*arguments, *calibration, "--out", str(out), "--json"]) == 0
        summary = json.loads(capsys.readouterr().out)["summary"]
        assert summary["sparsity"] == pytest.approx(0.5, abs=0.03)
        off[name] = float(np.abs(Encoder.load(out).predict(lines).logits - wanted).mean())
    assert off["file"] < 0.5 * off["norm"]
    assert off["data"] < 0.5 * off["norm"]


@pytest.mark.parametrize("sparsity", ["0", "0.5"])
def test_prune_takes_heads_neurons_and_layers_away(
    finished: Finished, tiny_data: Path, tmp_path: Path, capsys: Capture, sparsity: str
) -> None:
    dense = finished.folder / "stages" / "dense"
    whole = Encoder.load(dense).architecture.structure
    arguments = ["prune", "--model", str(dense), f"--sparsity={sparsity}", "--layers", "0.5"]
    arguments += ["--heads", "0.5", "--neurons", "0.5", "--out", str(tmp_path / "small")]
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


def test_prune_on_an_empty_file_says_so(
    finished: Finished, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "none.txt").write_text("\n \n", encoding="utf-8")
    arguments = ["prune", "--model", str(finished.folder / "stages" / "dense"), "--sparsity=0.5"]
    arguments += ["--out", str(tmp_path / "o"), "--calibration", str(tmp_path / "none.txt")]
    assert main(arguments) == 1
    assert "none.txt, a file without a text" in one_line(capsys)
    assert not (tmp_path / "o").exists()
