"""`spatile explain`, and `spatile predict` on part of the tokens and heads."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from spatile.cli import main
from spatile.inference import Encoder
from spatile.sparsity import Schedule
from tests.finetune.conftest import Finished

from .conftest import Capture, code_of, one_line

KEEP = ["--keep-tokens", "0.7", "--keep-heads", "0.75"]


def test_it_prints_what_the_encoder_explains(finished: Finished, capsys: Capture) -> None:
    run = str(finished.folder)
    encoder = Encoder.load(
        finished.folder / "packed", tokens=Schedule.linear(0.7), heads=Schedule.linear(0.75)
    )
    found = encoder.explain("word1 word2 word3", "word4")
    assert main(["explain", run, "word1 word2 word3", "word4", *KEEP]) == 0
    assert capsys.readouterr().out == found.to_text(colour=False, width=100) + "\n"
    assert main(["explain", run, "word1 word2 word3", "word4", *KEEP, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found.to_json()))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_stdout_that_lacks_characters_shows_the_others(
    encoding: str, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(finished.folder)
    for options in ([], ["--json"]):
        stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr("sys.stdout", stdout)
        assert main(["explain", run, "word1 \u2603 caf\u00e9 word2", *KEEP, *options]) == 0
        shown = stdout.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        if options:
            assert json.loads(shown)["text"] == "word1 \u2603 caf\u00e9 word2"
        else:
            assert "?" in shown
            assert ("caf\u00e9" in shown) == (encoding == "latin-1")
            assert ("\u00b7" in shown) == (encoding == "latin-1")


def test_it_writes_a_page(finished: Finished, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "page.html"
    arguments = ["explain", str(finished.folder), "word1 <b> word2", *KEEP, "--html", str(file)]
    assert main(arguments) == 0
    assert capsys.readouterr().out == ""
    page = file.read_text("utf-8")
    assert page.startswith("<!doctype html>")
    assert "<title>word1 &lt;b&gt; word2</title>" in page
    assert "<s class='just'>" in page
    assert "color-scheme: light dark" in page


def test_stored_schedules_are_used_unless_others_are_given(
    finished: Finished, tmp_path: Path, capsys: Capture
) -> None:
    packed = tmp_path / "packed"
    Encoder.load(finished.folder / "packed", tokens=Schedule.linear(0.6)).save(packed)
    text = "word1 word2 word3 word4 word5 word6"

    def reduction(*options: str) -> float:
        assert main(["explain", str(packed), text, "--json", *options]) == 0
        return float(json.loads(capsys.readouterr().out)["reduction"])

    kept_all, stored = reduction("--keep-tokens", "1"), reduction()
    assert kept_all < stored < reduction("--keep-tokens", "0.55")


def test_predict_keeps_part(finished: Finished, capsys: Capture) -> None:
    packed, text = finished.folder / "packed", "word1 word2 word3 word4 word5"
    encoder = Encoder.load(packed, tokens=Schedule.linear(0.6), heads=Schedule.linear(0.75))
    found = encoder.predict([text])
    arguments = ["--keep-tokens", "0.6", "--keep-heads", "0.75", "--json"]
    assert main(["predict", str(packed), text, *arguments]) == 0
    row = json.loads(capsys.readouterr().out)
    assert found.probabilities is not None
    assert list(row["probabilities"].values()) == [float(p) for p in found.probabilities[0]]


@pytest.mark.parametrize("command", ["explain", "predict"])
@pytest.mark.parametrize("keep", ["0", "1.5", "nan", "-1"])
@pytest.mark.parametrize("unit", ["tokens", "heads"])
def test_a_share_outside_is_wrong_use(
    command: str, keep: str, unit: str, finished: Finished, capsys: Capture
) -> None:
    assert code_of(command, finished.folder, "word1", f"--keep-{unit}={keep}") == 2
    assert f"keep-{unit} is {float(keep):g}, expected a fraction in (0, 1]" in one_line(capsys)


@pytest.mark.parametrize(
    "arguments",
    [["explain"], ["explain", "m"], ["explain", "m", "t", "--keep-tokens", "x"],
     ["explain", "m", "t", "--json", "--html", "f"], ["explain", "m", "t", "--html", ""]],
    ids=" ".join,
)  # fmt: skip
def test_wrong_use_exits_with_2(arguments: list[str], capsys: Capture) -> None:
    assert code_of(*arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_failure_is_one_line(finished: Finished, tmp_path: Path, capsys: Capture) -> None:
    assert main(["explain", str(tmp_path / "no"), "word1"]) == 1
    assert "no such folder, expected a model or a run" in one_line(capsys)
    # Two layers, the first of which is whole, cannot keep less than half.
    assert main(["explain", str(finished.folder), "word1", "--keep-tokens", "0.3"]) == 1
    assert "average is 0.3, expected more than 0.5" in one_line(capsys)
    nowhere = str(tmp_path / "no" / "page.html")
    assert main(["explain", str(finished.folder), "word1", "--html", nowhere]) == 1
    assert "No such file or directory" in one_line(capsys)
