"""The command line: help, what it prints when used wrongly, and its exit codes 0, 1 and 2."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from spatile.cli import finetune as finetune_command
from spatile.cli import main
from spatile.finetune.settings import Settings
from spatile.sparsity import Plan

from .conftest import Capture, code_of, one_line

COMMANDS = ("finetune", "prune", "sweep", "predict", "explain", "bench", "report", "export", "info")


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


def test_help_states_the_factor_of_the_retrain_stages_rate(capsys: Capture) -> None:
    assert code_of("finetune", "--help") == 0
    factor = Settings("m", "d", 0.5).lr_factors[2]
    assert f"retrain's own ({factor:g} · lr)" in capsys.readouterr().out


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


def test_a_plan_goes_with_no_sparsity(tmp_path: Path, capsys: Capture) -> None:
    Plan.uniform("tile", 0.5).save(tmp_path / "plan.json")
    arguments = ["finetune", "--model=m", "--data=d", "--out", str(tmp_path / "run")]
    arguments += ["--plan", str(tmp_path / "plan.json")]
    for flag in ("--sparsity=0.5", "--pattern=row"):
        assert code_of(*arguments, flag) == 2
        name = flag.partition("=")[0]
        assert f"finetune: {name} is given with --plan, expected one of the two" in one_line(capsys)
    assert code_of(*arguments) == 1
    assert "m" in one_line(capsys)
