"""``spatile finetune --keep-tokens --keep-heads``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spatile.cli import main
from spatile.inference import Encoder
from spatile.sparsity import Schedule

from .conftest import Capture


def test_sparsity_may_be_left_out(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "run"
    how = [
        "--epochs-dense=1", "--epochs-retrain=1", "--batch-size=8", "--lr=1e-3", "--max-length=64",
        "--threads=1", "--timing-rounds=0", "--json",
    ]  # fmt: skip
    given = ["--model", str(tiny_model), "--data", str(tiny_data), "--out", str(out)]
    assert main(["finetune", *given, "--keep-tokens", "0.75", "--keep-heads", "0.75", *how]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["settings"]["sparsity"] == 0.0
    assert report["schedules"] == {"tokens": {"average": 0.75}, "heads": {"average": 0.75}}
    assert Encoder.load(out / "packed").tokens == Schedule.linear(0.75)
    assert main(["predict", str(out), "word1 word2 word30"]) == 0


def test_what_cannot_be_kept_is_wrong_use(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    given = ["--model", str(tiny_model), "--data", str(tiny_data), "--out", str(tmp_path / "run")]
    assert main(["finetune", *given, "--keep-tokens", "2"]) == 2
    assert "keep_tokens is 2.0, expected a fraction in (0, 1]" in capsys.readouterr().err
    assert main(["finetune", *given]) == 2
    assert "finetune: --sparsity is missing" in capsys.readouterr().err


def test_the_help_shows_how(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["finetune", "--help"])
    out = capsys.readouterr().out
    assert "--keep-tokens K" in out
    assert "--keep-tokens 0.5 --keep-heads 0.75" in out
