"""A sweep on the small model: what it leaves, what it refuses, how it goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spatile.cli import main
from spatile.finetune import RunFolder
from spatile.finetune.data import load_task
from spatile.finetune.metrics import accuracy
from spatile.sweep import read_rows
from spatile.sweep.folder import SweepFolder
from spatile.sweep.pool import Job, Pool

from .conftest import SHORT, Start, Swept

Capture = pytest.CaptureFixture[str]
CELLS = 8


def outcome(folder: Path) -> list[dict[str, Any]]:
    """Rows without what depends on the clock."""
    clock = ("seconds", "latency", "threads")
    rows: list[dict[str, Any]] = [
        {k: v for k, v in row.items() if not any(word in k for word in clock)}
        for row in read_rows(folder)["rows"]
    ]
    return rows


def written(folder: Path) -> dict[str, int]:
    """When each result was written."""
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.glob("cells/*/result.json")
    }


@pytest.fixture
def copied(swept: Swept, tmp_path: Path) -> Swept:
    """The whole sweep in a folder of its own, to be changed."""
    shutil.copytree(swept.folder, tmp_path / "copy")
    return Swept(tmp_path / "copy", swept.arguments)


# ---- what it leaves


def test_rows_have_every_cell_and_metric(swept: Swept) -> None:
    document = read_rows(swept.folder)
    rows = document["rows"]
    assert len(rows) == 2 * CELLS
    keys = {(r["pattern"], r["method"], r["sparsity"], r["seed"], r["metric"]) for r in rows}
    assert len(keys) == 2 * CELLS
    assert document["metrics"] == ["accuracy", "f1"]
    assert document["missing"] == []
    for row in rows:
        assert row["achieved"] == pytest.approx(row["sparsity"], abs=0.03)
        assert row["dev_rows"] == 24


def test_values_are_those_of_the_runs_and_dense_is_the_same_seeds(
    swept: Swept, tiny_data: Path
) -> None:
    folder = SweepFolder.open(swept.folder)
    task = load_task(tiny_data)
    dense = {
        seed: accuracy(
            task.dev.labels, RunFolder.open(folder.dense(seed)).logits("dense").argmax(axis=1)
        ).value
        for seed in (0, 1)
    }
    rows = [r for r in read_rows(swept.folder)["rows"] if r["metric"] == "accuracy"]
    for cell, row in zip(folder.spec.cells(), rows, strict=True):
        logits = RunFolder.open(folder.run(cell)).logits("retrained")
        assert row["value"] == accuracy(task.dev.labels, logits.argmax(axis=1)).value
        assert row["dense"] == dense[cell.seed]


def test_all_cells_of_a_seed_start_from_its_dense_model(swept: Swept) -> None:
    folder = SweepFolder.open(swept.folder)
    for cell in folder.spec.cells():
        dense = RunFolder.open(folder.dense(cell.seed)).logits("dense")
        np.testing.assert_array_equal(RunFolder.open(folder.run(cell)).logits("dense"), dense)


def test_a_configuration_is_timed_once_for_all_its_seeds(swept: Swept) -> None:
    rows = read_rows(swept.folder)["rows"]
    times: dict[Any, set[Any]] = {}
    for row in rows:
        assert row["latency_ms"] >= row["latency_min_ms"] > 0
        assert row["dense_latency_ms"] > 0
        assert row["torch_latency_ms"] > 0
        assert row["threads"] == 1
        key = row["pattern"], row["method"], row["sparsity"]
        times.setdefault(key, set()).add(row["latency_ms"])
    assert len(times) == 4
    assert all(len(found) == 1 for found in times.values())
    assert len(list(swept.folder.glob("cells/*/timing.json"))) == 4


def test_only_dense_models_are_kept(swept: Swept) -> None:
    models = [p.relative_to(swept.folder) for p in swept.folder.rglob("*.safetensors")]
    assert sorted(str(p) for p in models) == [
        f"dense/seed-{seed}/stages/dense/model.safetensors" for seed in (0, 1)
    ]
    assert len(list(swept.folder.glob("cells/*/run/report.json"))) == CELLS


def test_tables_plots_command_and_time(swept: Swept) -> None:
    text = (swept.folder / "results.md").read_text("utf-8")
    for words in ("--methods none", "--seeds 0,1", "--lr 0.003", "Took ", "Break-even"):
        assert words in text
    for name in ("sparsity", "latency"):
        assert (swept.folder / f"rows.{name}.svg").read_text("utf-8").startswith("<svg")


# ---- going on


def test_a_finished_sweep_is_not_done_again(
    copied: Swept, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("spatile.sweep.pool.subprocess.Popen", refuse)
    before = outcome(copied.folder)
    assert main(["sweep", "--resume", "--out", str(copied.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == read_rows(copied.folder)["rows"]
    assert outcome(copied.folder) == before


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


def test_other_data_of_the_same_name_is_refused(
    copied: Swept, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SweepFolder.open(copied.folder).spec
    spec = replace(spec, data=tiny_data.name, started_in=str(tiny_data.parent))
    shutil.copytree(tiny_data, tmp_path / tiny_data.name)
    monkeypatch.chdir(tmp_path)
    other = replace(spec, started_in="")
    with pytest.raises(ValueError, match=f"data is '{tmp_path}.*, expected '{tiny_data}' as in"):
        spec.extended(other)


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


def test_what_could_not_be_compared_is_refused(copied: Swept, capsys: Capture) -> None:
    how = ["--resume", "--out", str(copied.folder)]
    assert main([*copied.arguments, *how, "--lr=1e-3"]) == 1
    assert capsys.readouterr().err == (
        "spatile: sweep: lr is 0.001, expected 0.003 as in the sweep that was started\n"
    )
    changed = "--methods=none=strength:0;epochs_retrain:3"
    assert main([*copied.arguments, *how, changed]) == 1
    assert "method 'none' is {'strength': 0" in capsys.readouterr().err


def test_what_other_defaults_have_trained_is_not_mixed_with_new_rows(
    copied: Swept, capsys: Capture
) -> None:
    file = copied.folder / "cells" / "tile_none_0.5_seed_0" / "run" / "run.json"
    run = json.loads(file.read_text())
    run["settings"]["gradual"] = 0.75  # as if that had been the default
    file.write_text(json.dumps(run))
    before = written(copied.folder)
    how = ["--resume", "--timing-rounds=0", "--out", str(copied.folder), "--quiet"]
    assert main(["sweep", *how]) == 0  # nothing is left to train
    assert main(["sweep", *how, "--seeds=0,1,2"]) == 1
    assert capsys.readouterr().err.startswith(
        "spatile: sweep: gradual is 0.3333333333333333, expected 0.75 as in tile none 0.5 "
        "seed 0, which another version has trained"
    )
    assert SweepFolder.open(copied.folder).spec.seeds == (0, 1)
    assert written(copied.folder) == before


def test_other_rows_of_data_are_refused(copied: Swept, capsys: Capture) -> None:
    file = copied.folder / "sweep.json"
    state = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**state, "data": "0" * 64}), "utf-8")
    assert main(["sweep", "--resume", "--out", str(copied.folder)]) == 1
    assert "whose rows are not those that" in capsys.readouterr().err


def test_cells_scored_on_other_dev_rows_are_refused(copied: Swept, capsys: Capture) -> None:
    """A result that was put there from a sweep over other rows."""
    file = copied.folder / "cells" / "row_none_0.8_seed_1" / "result.json"
    result = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**result, "predictions": "01"}), "utf-8")
    assert main(["sweep", "--resume", "--out", str(copied.folder)]) == 1
    assert "row none 0.8 seed 1 has 2 dev rows, expected 24" in capsys.readouterr().err


def test_a_folder_that_holds_something_is_refused(
    swept: Swept, tmp_path: Path, capsys: Capture
) -> None:
    assert main([*swept.arguments, "--out", str(swept.folder)]) == 1
    assert "holds a sweep, expected an empty or new folder; --resume" in capsys.readouterr().err
    (tmp_path / "mine.txt").write_text("")
    assert main([*swept.arguments, "--out", str(tmp_path)]) == 1
    assert "which holds files, expected an empty or new folder" in capsys.readouterr().err
    assert main(["sweep", "--resume", "--out", str(tmp_path)]) == 1
    assert "no sweep.json" in capsys.readouterr().err


def test_two_processes_don_t_work_on_one_sweep(copied: Swept, capsys: Capture) -> None:
    with SweepFolder.open(copied.folder).locked():
        assert main(["sweep", "--resume", "--out", str(copied.folder)]) == 1
    assert "another process is at work in" in capsys.readouterr().err


def test_a_cell_that_fails_is_named_and_the_others_are_finished(
    base: list[str], tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "sweep"
    grid = ["--sparsity=0.5,0.8", "--methods=none", "--timing-rounds=0", "--threads=1"]
    in_the_way = out / "cells" / "tile_none_0.5_seed_0" / "run"
    create = SweepFolder.create

    def create_with_a_file(path: Any, spec: Any, *, data: str) -> SweepFolder:
        made = create(path, spec, data=data)
        in_the_way.parent.mkdir(parents=True)
        in_the_way.write_text("")
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SweepFolder, "create", create_with_a_file)
        assert main([*base, *grid, "--out", str(out)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("spatile: sweep: 1 failed, --resume tries them again: tile none 0.5")
    assert "a file, expected a folder" in last
    assert {r["sparsity"] for r in read_rows(out)["rows"]} == {0.8}
    assert read_rows(out)["missing"] == ["tile none 0.5 seed 0"]

    in_the_way.unlink()
    assert main(["sweep", "--resume", "--timing-rounds=0", "--out", str(out), "--quiet"]) == 0
    assert {r["sparsity"] for r in read_rows(out)["rows"]} == {0.5, 0.8}


def test_a_worker_that_dies_fails_its_job_alone(swept: Swept, tmp_path: Path) -> None:
    folder = SweepFolder.open(swept.folder)
    settings = folder.spec.dense_settings(0).with_changes(epochs_dense=50.0)
    finished: list[dict[str, Any]] = []

    def job(name: str, epochs: float) -> Job:
        message = {
            "kind": "train",
            "settings": settings.with_changes(epochs_dense=epochs).to_dict(),
            "out": str(tmp_path / name),
            "threads": 1,
        }
        return Job(name, message, finished.append)

    def kill(stepped: Job) -> None:
        if stepped.name == "first":
            os.kill(pool._workers[0].process.pid, signal.SIGKILL)

    with folder.locked() as lock, Pool(1, 1, lock, kill) as pool:
        failed = pool.run([job("first", 50.0), job("second", 0.5)])
    assert failed == {"first": "its process ended with -9"}
    assert [list(found["metrics"]) for found in finished] == [["accuracy", "f1"]]
    assert (tmp_path / "second" / "report.json").is_file()


def test_dense_models_of_another_sweep_serve_here_too(
    swept: Swept, base: list[str], tmp_path: Path, capsys: Capture
) -> None:
    grid = ["--sparsity=0.5", "--methods=none", "--threads=1", "--timing-rounds=0", "--quiet"]
    how = ["--dense", str(swept.folder), "--out", str(tmp_path / "other")]
    assert main([*base, *grid, "--lr=1e-3", *how]) == 1
    assert "lr is 0.001, expected 0.003 as in the dense models of" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert main([*base, *grid, *how]) == 0
    weights = [
        f / "dense/seed-0/stages/dense/model.safetensors"
        for f in (swept.folder, tmp_path / "other")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    row = outcome(tmp_path / "other")[0]
    assert row in outcome(swept.folder)
    text = (tmp_path / "other" / "results.md").read_text("utf-8")
    assert "without the dense models, which are another sweep's" in text


# ---- killed and stopped

STEPS = ["--sparsity=0.5,0.8", "--epochs-retrain=8", "--checkpoint-every=5", "--seeds=0,1"]


@pytest.fixture(scope="module")
def long(base: list[str]) -> list[str]:
    arguments = [a for a in base if not a.startswith("--epochs-retrain")]
    assert len(arguments) == 1 + 4 + len(SHORT) - 1
    return [*arguments, *STEPS, "--jobs=2", "--threads=1", "--timing-rounds=0"]


@pytest.fixture(scope="module")
def whole(long: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep that others of the same arguments are to equal."""
    out = tmp_path_factory.mktemp("sweeps") / "long"
    assert main([*long, "--quiet", "--out", str(out)]) == 0
    return out


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 150
    while not condition():
        assert process.poll() is None, f"ended too early: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def in_the_second_pair(out: Path) -> bool:
    """One configuration is finished, the next has a checkpoint after its pruning."""
    done = list(out.glob("cells/*/result.json"))
    pattern = "cells/*/run/trainer/checkpoint-2*/spatile_pruning.json"
    return len(done) >= 2 and any(out.glob(pattern))


def test_killed_and_resumed_gives_the_same_rows_and_repeats_nothing(
    start: Start, long: list[str], whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    process = start([*long, "--out", str(out)])
    wait_for(process, lambda: in_the_second_pair(out))
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL
    process.communicate()
    folder = SweepFolder.open(out)
    # Its workers end with it: the lock that they hold too comes free.
    deadline = time.monotonic() + 60
    while True:
        try:
            with folder.locked():
                break
        except RuntimeError:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    finished = written(out)
    assert 2 <= len(finished) < 4
    begun = {
        p: p.stat().st_mtime_ns
        for p in out.glob("cells/*/run/predictions/dense.npy")
        if not (p.parents[2] / "result.json").exists()
    }
    assert begun
    assert main(["sweep", "--resume", "--jobs=2", "--threads=1", "--timing-rounds=0", "--quiet",
                 "--out", str(out)]) == 0  # fmt: skip
    assert outcome(out) == outcome(whole)
    assert read_rows(out)["dev"] == read_rows(whole)["dev"]
    after = written(out)
    assert {name: after[name] for name in finished} == finished
    # An unfinished cell went on from its checkpoint: what it had evaluated was not done again.
    assert {p: p.stat().st_mtime_ns for p in begun} == begun


def test_ctrl_c_says_how_to_go_on_and_leaves_a_sweep_that_resumes_wherever_it_is_moved(
    start: Start, long: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "sweep"
    process = start([*long, "--out", str(out)])
    wait_for(process, lambda: in_the_second_pair(out))
    process.send_signal(signal.SIGINT)
    stdout, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert stdout == ""
    assert err.splitlines()[-1] == (
        f"spatile: stopped; spatile sweep --resume --out {out} continues the sweep"
    )
    assert "Traceback" not in err
    # Half-trained cells name the dense model they started from by where it was.
    moved = out.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "--resume", "--jobs=2", "--threads=1", "--timing-rounds=0", "--quiet",
                 "--out", "moved"]) == 0  # fmt: skip
    assert outcome(moved) == outcome(whole)
