"""The search for a sparsity: its path, its result, what it refuses, how it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spatile.cli import main
from spatile.finetune import RunFolder, target_loss
from spatile.finetune.target_loss import search_sparsity, summary_lines

from .conftest import TINY, WORDS, write_data

SETTINGS = {
    name: value
    for name, value in TINY.items()
    if name not in ("sparsity", "threads", "timing_rounds")
}
Capture = pytest.CaptureFixture[str]


class Pipeline:
    """Stands in for ``finetune``: the loss in points is a function of the sparsity."""

    def __init__(
        self, loss: Callable[[float], float], *, floor: float | None = 0.5, gone: float = 0.0
    ) -> None:
        self.loss, self.floor, self.gone = loss, floor, gone
        self.trained: list[float] = []
        self.stop_at: float | None = None

    def __call__(self, *, sparsity: float, out: Path, **given: Any) -> dict[str, Any]:
        if sparsity == self.stop_at:
            raise KeyboardInterrupt
        assert given["timing_rounds"] == 0
        assert (given["epochs_dense"] > 0) == (sparsity == 0.0)
        self.trained.append(sparsity)
        value = -self.loss(sparsity) / 100
        difference = {"value": value, "low": value - 0.02, "high": value + 0.02}
        scores = {
            name: {"f1": {"value": v, "low": v - 0.03, "high": v + 0.03}}
            for name, v in (("retrained", 0.9 + value), ("dense", 0.9))
        }
        report = {
            "format": "spatile.report",
            "version": 1,
            "data": {"name": "mrpc", "metrics": ["accuracy", "f1"], "dev_rows": 408},
            "differences": {"retrained - dense": {"f1": difference}},
            "scores": scores,
            "floor": {"f1": {"value": self.floor}},
            "summary": {"packed": {"sparsity": sparsity + self.gone}},
        }
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.json").write_text(json.dumps(report))
        return report


def search(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, model: Path, out: Path, **changes: Any
) -> dict[str, Any]:
    monkeypatch.setattr(target_loss, "finetune", pipeline)
    given: dict[str, Any] = {"target_loss": 2.0, "timing_rounds": 0, **SETTINGS, **changes}
    return search_sparsity(model, write_data(out.parent / "data"), out=out, **given)


@pytest.mark.parametrize(
    ("loss", "expected", "path"),
    [
        (lambda s: 10 * s**2, 0.4, [0.5, 0.25, 0.35, 0.4, 0.45]),
        (lambda s: 0.0, 0.95, [0.5, 0.75, 0.85, 0.9, 0.95]),
        (lambda s: 2.0, 0.95, [0.5, 0.75, 0.85, 0.9, 0.95]),
        (lambda s: 2.1, None, [0.5, 0.25, 0.1, 0.05]),
        (lambda s: 2.1 if s > 0.05 else -1.0, 0.05, [0.5, 0.25, 0.1, 0.05]),
    ],
    ids=["quadratic", "no loss", "at the bound", "too much everywhere", "the least"],
)
def test_the_path_and_the_result(
    loss: Callable[[float], float],
    expected: float | None,
    path: list[float],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline, out = Pipeline(loss), tmp_path / "search"
    found = search(pipeline, monkeypatch, tiny_model, out)
    assert pipeline.trained == [0.0, *path]  # dense once
    assert found["steps"] == path
    assert [t["sparsity"] for t in found["tries"]] == path
    assert found["metric"] == "f1"
    assert (found["result"] or {}).get("sparsity") == expected
    if expected is None:
        assert not (out / "best").exists()
    else:
        assert (out / "best").resolve() == (out / "tries" / f"{expected:g}").resolve()
    on_disk = json.loads((out / "search.json").read_text("utf-8"))
    assert on_disk["result"] == found["result"]


def test_what_has_learned_nothing_is_no_success(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 0.4 on only the majority class is answered, at a loss that the bound allows."""
    pipeline = Pipeline(lambda s: 9.0 if s >= 0.4 else 2.0, floor=0.81)
    found = search(pipeline, monkeypatch, tiny_model, tmp_path / "s", target_loss=10.0)
    assert found["result"]["sparsity"] == 0.35
    on_disk = json.loads((tmp_path / "s" / "search.json").read_text("utf-8"))
    standing = {t["sparsity"]: (t["floor"], t["above_floor"]) for t in on_disk["tries"]}
    assert standing[0.5] == (0.81, False)
    assert standing[0.35] == (0.81, True)
    text = "\n".join(summary_lines(found))
    assert (
        "sparsity 0.5 loses 9.00 points [7.00, 11.00], not above the majority class's 0.810: n"
        in (text)
    )
    assert "sparsity 0.35 loses 2.00 points [0.00, 4.00]: within the bound" in text
    nothing = Pipeline(lambda s: 9.0, floor=0.81)
    found = search(nothing, monkeypatch, tiny_model, tmp_path / "t", target_loss=10.0)
    assert found["result"] is None
    assert "at most 10 points and is above the majority class's score" in summary_lines(found)[-1]


def test_a_dense_model_that_has_learned_nothing_stops_the_search(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(lambda s: 0.0, floor=0.88)
    words = r"dense model's f1 is 0.900 \[0.870, 0.930\].*expected above the majority class's 0.880"
    with pytest.raises(RuntimeError, match=words):
        search(pipeline, monkeypatch, tiny_model, tmp_path / "s")
    assert pipeline.trained == [0.0]
    with pytest.raises(RuntimeError, match=words):
        search(pipeline, monkeypatch, tiny_model, tmp_path / "s", resume=True)
    assert pipeline.trained == [0.0]


def test_without_a_floor_the_loss_decides(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(lambda s: 10 * s**2, floor=None)
    found = search(pipeline, monkeypatch, tiny_model, tmp_path / "s")
    assert found["result"]["sparsity"] == 0.4
    assert found["result"]["above_floor"] is None


def test_what_is_really_gone_of_the_weights_is_said(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(lambda s: 10 * s**2, gone=0.075)
    found = search(pipeline, monkeypatch, tiny_model, tmp_path / "s")
    assert found["result"]["achieved"] == pytest.approx(0.475)
    text = "\n".join(summary_lines(found))
    assert "sparsity 0.5 (57.5 % of the weights gone) loses 2.50 points" in text
    assert "loses at most 2 points: 0.4 (47.5 % of the weights gone)" in text


def test_tries_of_a_version_without_the_floor_are_looked_at_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, out = Pipeline(lambda s: 9.0 if s >= 0.4 else 2.0, floor=0.81), tmp_path / "s"
    found = search(pipeline, monkeypatch, tiny_model, out, target_loss=10.0)
    state = json.loads((out / "search.json").read_text("utf-8"))
    for tried in state["tries"]:
        for name in ("floor", "above_floor", "achieved"):
            del tried[name]
    (out / "search.json").write_text(json.dumps(state), "utf-8")
    again = search(pipeline, monkeypatch, tiny_model, out, target_loss=10.0, resume=True)
    assert again == found


def test_a_finer_resolution_takes_more_steps(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(lambda s: 10 * s**2)
    found = search(pipeline, monkeypatch, tiny_model, tmp_path / "s", resolution=0.01)
    assert found["result"]["sparsity"] == 0.44


def test_the_words_are_honest_about_noise(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = search(Pipeline(lambda s: 10 * s**2), monkeypatch, tiny_model, tmp_path / "s")
    text = "\n".join(summary_lines(found))
    assert "sparsity 0.4 loses 1.60 points [-0.40, 3.60]: within the bound" in text
    assert "sparsity 0.5 loses 2.50 points [0.50, 4.50]: too much" in text
    assert "highest sparsity that loses at most 2 points: 0.4" in text
    assert "its interval reaches 3.60" in text
    assert "at 5 of 5 steps the bound lies within the interval" in text
    sure = search(Pipeline(lambda s: 40 * s - 23), monkeypatch, tiny_model, tmp_path / "t")
    assert "at 2 of 4 steps" in "\n".join(summary_lines(sure))


def test_a_search_goes_on_where_it_was(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, out = Pipeline(lambda s: 10 * s**2), tmp_path / "s"
    pipeline.stop_at = 0.35
    with pytest.raises(KeyboardInterrupt):
        search(pipeline, monkeypatch, tiny_model, out)
    assert pipeline.trained == [0.0, 0.5, 0.25]
    again = Pipeline(pipeline.loss)
    found = search(again, monkeypatch, tiny_model, out, resume=True)
    assert again.trained == [0.35, 0.4, 0.45]
    assert found["result"]["sparsity"] == 0.4
    finished = Pipeline(pipeline.loss)
    assert search(finished, monkeypatch, tiny_model, out, resume=True) == found
    assert finished.trained == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_loss": 3.0}, "target_loss is 3.0, expected 2.0 as in the search"),
        ({"resolution": 0.1}, "resolution is 0.1, expected 0.05 as in the search"),
        ({"lr": 1e-3}, "lr is 0.001, expected 0.003 as in the search"),
    ],
    ids=["bound", "resolution", "setting"],
)
def test_another_search_is_refused(
    changes: dict[str, Any],
    words: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline, out = Pipeline(lambda s: 10 * s**2), tmp_path / "s"
    search(pipeline, monkeypatch, tiny_model, out)
    with pytest.raises(ValueError, match=words):
        search(pipeline, monkeypatch, tiny_model, out, resume=True, **changes)
    with pytest.raises(FileExistsError, match=r"holds a search.*--resume continues the search"):
        search(pipeline, monkeypatch, tiny_model, out)


@pytest.mark.parametrize("value", [0.0, -1.0, 100.0, float("nan"), float("inf")])
def test_a_bound_out_of_range_is_refused(value: float, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"target_loss is .* above 0 and below 100"):
        search_sparsity(tiny_model, "data", target_loss=value, out=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_search_needs_a_dense_stage(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="epochs_dense is 0, expected a dense stage"):
        search_sparsity(tiny_model, "data", target_loss=1.0, out=tmp_path / "s", epochs_dense=0.0)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_length": 65}, "max_length is 65, expected at most the 64 positions"),
        ({"epochs_reweighted": 0.0, "epochs_retrain": 0.0}, "expected at least one step"),
        ({"epochs_dense": 0.01}, "expected at least one step"),
        ({"label": "class"}, "class"),
    ],
    ids=["length", "no retraining", "no dense step", "no such column"],
)
def test_what_can_not_be_run_leaves_no_folder(
    changes: dict[str, Any], words: str, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {**SETTINGS, **changes}
    with pytest.raises(ValueError, match=words):
        search_sparsity(tiny_model, tiny_data, target_loss=1.0, out=tmp_path / "s", **given)
    assert not (tmp_path / "s").exists()


# ---- the command


def test_another_resolution_is_resumed_from_the_command(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    pipeline, out = Pipeline(lambda s: 10 * s**2), tmp_path / "s"
    found = search(pipeline, monkeypatch, tiny_model, out, resolution=0.1)
    pipeline.trained.clear()
    resume = ["finetune", "--resume", "--out", str(out), "--timing-rounds=0", "--quiet", "--json"]
    assert main(resume) == 0
    assert json.loads(capsys.readouterr().out)["result"] == found["result"]
    assert pipeline.trained == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--target-loss=0"],
        ["--target-loss=100"],
        ["--target-loss=nan"],
        ["--target-loss=much"],
        ["--target-loss=1", "--sparsity=0.5"],
        ["--target-loss=1", "--lr=-1"],
    ],
    ids=" ".join,
)
def test_wrong_use_exits_with_2(
    arguments: list[str], tiny_model: Path, tiny_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    base = ["finetune", "--model", str(tiny_model), "--data", str(tiny_data)]
    try:
        code = main([*base, *arguments, "--out", str(tmp_path / "s")])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def _easy_data(folder: Path) -> Path:
    """Every word tells the class: what is learned is far above the floor on 24 dev rows."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for split, count in (("train", 48), ("dev", 24)):
        lines = []
        for i in range(count):
            half = i % 2
            words = random.integers(20, size=8) + 20 * half
            text = " ".join(WORDS[w] for w in words)
            lines.append(json.dumps({"sentence": text, "label": ("low", "high")[half]}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines), "utf-8")
    return folder


def test_the_command_searches_and_resumes(
    tiny_model: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "search"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    flags += ["--threads=1", "--timing-rounds=1", "--quiet", "--epochs-reweighted=0"]
    data = str(_easy_data(tmp_path / "data"))
    base = ["finetune", "--model", str(tiny_model), "--data", data, *flags]
    code = main([*base, "--target-loss=30", "--out", str(out)])
    text = capsys.readouterr().out
    state = json.loads((out / "search.json").read_text("utf-8"))
    assert code == 0
    assert f"highest sparsity that loses at most 30 points: {state['result']['sparsity']:g}" in text
    best = RunFolder.open(out / "best")
    assert best.settings.sparsity == state["result"]["sparsity"]
    report = json.loads((out / "best" / "report.json").read_text("utf-8"))
    loss = -100 * report["differences"]["retrained - dense"]["accuracy"]["value"]
    assert state["result"]["loss"] == pytest.approx(loss)
    assert report["timing"]["rounds"] == 1
    assert main(["predict", str(out / "best"), "word1 word2"]) == 0
    models = {str(p.relative_to(out)) for p in out.glob("tries/*/packed")}
    assert models == {f"tries/{state['result']['sparsity']:g}/packed"}

    capsys.readouterr()
    trained = {p: p.stat().st_mtime_ns for p in out.glob("**/run.json")}
    assert main(["finetune", "--resume", "--out", str(out), "--json", "--quiet"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["result"] == state["result"]
    assert {p: p.stat().st_mtime_ns for p in out.glob("**/run.json")} == trained

    # Moved, and stopped before the last try was noted: its run is where it was left.
    moved = out.rename(tmp_path / "moved")
    state["tries"] = state["tries"][:-1]
    (moved / "search.json").write_text(json.dumps(state), "utf-8")
    assert main(["finetune", "--resume", "--out", str(moved), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["result"] == again["result"]

    # Moved, and stopped before the best was timed.
    moved = moved.rename(tmp_path / "again")
    report["timing"] = None
    (moved / "best" / "report.json").write_text(json.dumps(report), "utf-8")
    resume = ["finetune", "--resume", "--timing-rounds=1", "--out", str(moved), "--quiet"]
    assert main(resume) == 0
    report = json.loads((moved / "best" / "report.json").read_text("utf-8"))
    assert report["timing"]["rounds"] == 1
