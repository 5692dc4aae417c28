"""Runs that are killed, interrupted or out of disk, and what resuming makes of them."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spatile.cli import main

OPTIONS = [
    "--sparsity=0.5", "--epochs-dense=2", "--epochs-reweighted=2", "--epochs-retrain=2",
    "--batch-size=4", "--lr=1e-3", "--max-length=64", "--checkpoint-every=5", "--threads=1",
    "--timing-rounds=0", "--distill=0.3", "--distill-hidden=0.5", "--linear=spatile",
    "--saliency=second-order", "--calibration-rows=24", "--scope=global", "--prunings=3",
    "--gradual=0.5", "--lr-retrain=2e-3", "--heads=0.25", "--neurons=0.5", "--layers=0.5",
]  # fmt: skip
NO_TIMING = ["--timing-rounds", "0"]
STAGES = ("dense", "reweighted", "pruned", "retrained")
# 48 rows in batches of 4: stages end at steps 24, 48 and 72; prunings are after 48, 54 and 60.


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def command(tiny_model: Path, tiny_data: Path) -> list[str]:
    return ["finetune", "--model", str(tiny_model), "--data", str(tiny_data), *OPTIONS]


@pytest.fixture(scope="module")
def start(command: list[str]) -> Start:
    """Starts ``spatile finetune`` in a process of its own."""

    def run(out: Path, **how: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "spatile", *command, "--out", str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            **how,
        )

    return run


def resume(out: Path) -> int:
    """``spatile finetune --resume``, in this process."""
    return main(["finetune", "--resume", "--out", str(out), "--threads", "1", *NO_TIMING])


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert process.poll() is None, f"ended too early: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def saved(out: Path, step: int) -> bool:
    return (out / "trainer" / f"checkpoint-{step}" / "spatile_pruning.json").is_file()


@pytest.fixture(scope="module")
def whole(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert main([*command, "--out", str(out)]) == 0
    return out


def assert_same(out: Path, whole: Path) -> None:
    for stage in STAGES:
        mine, other = (f / "stages" / stage / "model.safetensors" for f in (out, whole))
        assert mine.read_bytes() == other.read_bytes(), stage
    packed = [(f / "packed" / "model.safetensors").read_bytes() for f in (out, whole)]
    assert packed[0] == packed[1]
    reports = [json.loads((f / "report.json").read_text("utf-8")) for f in (out, whole)]
    for key in ("scores", "differences", "pruning", "summary", "sizes", "multiply_adds"):
        assert reports[0][key] == reports[1][key], key


@pytest.mark.parametrize("step", [5, 30, 50, 65], ids=["dense", "reweighted", "pruning", "retrain"])
def test_killed_in_a_stage_and_resumed_gives_the_same_weights(
    start: Start, whole: Path, tmp_path: Path, step: int
) -> None:
    out = tmp_path / "run"
    process = start(out)
    wait_for(process, lambda: saved(out, step))
    process.kill()
    assert end(process)[0] == -signal.SIGKILL
    assert not (out / "report.json").exists()
    assert resume(out) == 0
    assert_same(out, whole)


def test_ctrl_c_says_how_to_go_on_and_resuming_gives_the_same_weights(
    start: Start, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(out)
    wait_for(process, lambda: saved(out, 25))
    process.send_signal(signal.SIGINT)
    code, _, err = end(process)
    assert code == 130
    assert err.splitlines()[-1] == (
        f"spatile: stopped; spatile finetune --resume --out {out} continues the run"
    )
    assert "Traceback" not in err
    assert resume(out) == 0
    assert_same(out, whole)


def test_a_full_disk_is_one_line_and_leaves_a_run_that_resumes(
    start: Start, whole: Path, tmp_path: Path
) -> None:
    """The limit lets a model through but not the optimizer's state, which is twice as large."""
    out = tmp_path / "run"
    size = (whole / "stages" / "dense" / "model.safetensors").stat().st_size

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20_000, size + 20_000))

    code, _, err = end(start(out, preexec_fn=limit))
    assert code == 1
    assert err.splitlines()[-1].startswith(f"spatile: {out / 'trainer'}: no space left")
    assert "Traceback" not in err
    assert resume(out) == 0
    assert_same(out, whole)


def test_other_settings_are_refused_by_name(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["finetune", "--resume", "--out", str(whole), "--lr", "2e-3"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"spatile: finetune: lr is 0.002, expected 0.001 as in the run that {whole} holds"
    ]


def test_other_rows_are_refused(
    command: list[str], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder of the data is the same, a row in it is not."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    state = json.loads((run / "run.json").read_text("utf-8"))
    state["data"] = "0" * 64
    (run / "run.json").write_text(json.dumps(state), encoding="utf-8")
    assert resume(run) == 1
    assert "whose rows are not those that" in capsys.readouterr().err


def test_a_folder_that_holds_a_run_is_refused_without_resume(
    command: list[str], whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (whole / "run.json").read_bytes()
    assert main([*command, "--out", str(whole)]) == 1
    err = capsys.readouterr().err
    assert "holds a run, expected an empty or new folder; --resume continues" in err
    assert (whole / "run.json").read_bytes() == before


def test_a_finished_run_resumes_to_its_report_without_training(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = whole / "stages" / "retrained" / "model.safetensors"
    before = trained.stat().st_mtime_ns
    assert resume(whole) == 0
    assert "Scores on dev after each stage" in capsys.readouterr().out
    assert trained.stat().st_mtime_ns == before
