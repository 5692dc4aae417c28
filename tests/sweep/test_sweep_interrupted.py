"""Sweeps in which a cell fails, a worker dies, or that are killed or stopped themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spatile.cli import main
from spatile.sweep import read_rows
from spatile.sweep.folder import SweepFolder
from spatile.sweep.pool import Job, Pool

from .conftest import SHORT, Capture, Start, Swept, outcome, written


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
