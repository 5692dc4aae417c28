"""How a sweep goes on: grown, moved, or from the dense models of another."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spatile.cli import main
from spatile.finetune.environment import environment
from spatile.sweep import read_rows
from spatile.sweep.folder import SweepFolder

from .conftest import Capture, Swept, outcome, written


def test_a_finished_sweep_is_not_done_again(
    copied: Swept, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("spatile.sweep.pool.subprocess.Popen", refuse)
    before, machine = outcome(copied.folder), read_rows(copied.folder)["machine"]
    assert (machine["jobs"], machine["threads"]) == (2, 1)
    assert main(["sweep", "--resume", "--jobs=1", "--out", str(copied.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == read_rows(copied.folder)["rows"]
    assert outcome(copied.folder) == before
    assert read_rows(copied.folder)["machine"] == machine


def test_a_grid_may_grow_and_only_what_is_new_is_trained(copied: Swept) -> None:
    before = written(copied.folder)
    arguments = [*copied.arguments, "--sparsity=0.3"]
    how = ["--resume", "--threads=1", "--timing-rounds=0", "--out", str(copied.folder)]
    arguments = [a for a in arguments if a != "--sparsity=0.5,0.8"]
    assert main([*arguments, *how, "--jobs=2", "--quiet"]) == 0
    after = written(copied.folder)
    assert len(after) == 12
    assert {name: after[name] for name in before} == before
    fresh = [r for r in read_rows(copied.folder)["rows"] if r["sparsity"] == 0.3]
    assert len(fresh) == 8
    assert all(row["latency_ms"] is None for row in fresh)


def relative(folder: Path, model: Path, data: Path) -> dict[str, Any]:
    """Have the sweep in ``folder`` look as if its model and data had been typed beside ``data``."""
    file = folder / "sweep.json"
    state: dict[str, Any] = json.loads(file.read_text("utf-8"))
    state["spec"] |= {"model": os.path.relpath(model, data.parent), "data": data.name}
    state["spec"]["started_in"] = str(data.parent)
    file.write_text(json.dumps(state), "utf-8")
    return state["spec"]


def test_a_sweep_goes_on_from_another_working_directory(
    copied: Swept, tiny_model: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = outcome(copied.folder)
    typed = relative(copied.folder, tiny_model, tiny_data)
    monkeypatch.chdir(copied.folder)
    assert main(["sweep", "--resume", "--out", "."]) == 0
    assert outcome(copied.folder) == before
    command = read_rows(copied.folder)["command"]
    assert f"--model {typed['model']} --data {tiny_data.name} --patterns" in command
    assert command.endswith("--out copy")
    # Paths that are typed now are seen from here, and may be other words for the same.
    again = ["sweep", "--resume", "--out", ".", "--data"]
    assert main([*again, os.path.relpath(tiny_data)]) == 0
    assert json.loads((copied.folder / "sweep.json").read_text("utf-8"))["spec"] == typed


def test_a_sweep_knows_where_it_was_started(
    copied: Swept, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_data.parent)
    spec = replace(SweepFolder.open(copied.folder).spec, data=tiny_data.name, started_in="")
    SweepFolder.create(copied.folder.with_name("new"), spec, data="0")
    monkeypatch.chdir(copied.folder)
    found = SweepFolder.open("../new").spec
    assert found.data == tiny_data.name
    assert found.dense_settings(0).data == str(tiny_data)


def test_a_sweep_that_did_not_note_where_it_was_started_goes_on_from_there(
    copied: Swept, tiny_model: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = relative(copied.folder, tiny_model, tiny_data)
    del spec["started_in"]
    file = copied.folder / "sweep.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"spec": spec}), "utf-8")
    monkeypatch.chdir(tiny_data.parent)
    assert main(["sweep", "--resume", "--out", str(copied.folder)]) == 0
    assert SweepFolder.open(copied.folder).spec.started_in == str(tiny_data.parent)


def test_dense_models_of_another_sweep_serve_here_too(
    copied: Swept, base: list[str], tmp_path: Path, capsys: Capture
) -> None:
    for seed in (0, 1):
        file = copied.folder / f"dense/seed-{seed}/report.json"
        report: dict[str, Any] = json.loads(file.read_text("utf-8"))
        report["environment"]["processor"] = "another machine's"
        file.write_text(json.dumps(report), "utf-8")
    grid = ["--sparsity=0.5", "--methods=none", "--threads=1", "--timing-rounds=0", "--quiet"]
    how = ["--dense", str(copied.folder), "--out", str(tmp_path / "other")]
    assert main([*base, *grid, "--lr=1e-3", *how]) == 1
    assert "lr is 0.001, expected 0.003 as in the dense models of" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert main([*base, *grid, *how]) == 0
    weights = [
        f / "dense/seed-0/stages/dense/model.safetensors"
        for f in (copied.folder, tmp_path / "other")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    row = outcome(tmp_path / "other")[0]
    assert row in outcome(copied.folder)
    text = (tmp_path / "other" / "results.md").read_text("utf-8")
    assert "without the dense models of another sweep, whose training took" in text
    machine = read_rows(tmp_path / "other")["machine"]
    assert (machine["processor"], machine["jobs"]) == (environment()["processor"], 1)
