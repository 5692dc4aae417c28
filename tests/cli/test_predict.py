"""`spatile predict`: texts from arguments, files and standard input; what is wrong with them."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from spatile.cli import main
from spatile.finetune.data import load_task
from spatile.inference import Encoder
from tests.finetune.conftest import Finished

from .conftest import Capture, one_line


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
    # As many lines out as in, so that the two can be put beside each other.
    texts = [line.split("\t")[-1] for line in from_file.splitlines()]
    assert texts == ["word1 word2", "", "word30"]
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
    (tmp_path / "pairs.tsv").write_text("a\tb\n\na\tb\n", encoding="utf-8")
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
