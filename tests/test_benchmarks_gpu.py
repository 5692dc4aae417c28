"""`python -m spatile.benchmarks.gpu` as far as it goes without a GPU: arguments, cases, rows."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from spatile.benchmarks.cases import Case, Peer, Target, WrongAnswerError
from spatile.benchmarks.gpu import NAMES, __main__, attention, linear, memory, run
from spatile.benchmarks.timing import Timing

torch = pytest.importorskip("torch")
Capture = pytest.CaptureFixture[str]


def test_every_name_is_a_module_that_measures() -> None:
    for name in NAMES:
        assert callable(importlib.import_module(f"spatile.benchmarks.gpu.{name}").measure)


def test_a_wrong_name_is_refused_with_the_list(capsys: Capture) -> None:
    assert __main__.main(["lineal"]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in NAMES)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: Capture) -> None:
    assert __main__.main(["linear"]) == 1
    assert "no GPU" in capsys.readouterr().out


def test_the_cases_are_those_of_the_targets() -> None:
    shapes = list(attention.shapes())
    assert {tokens for _, tokens, target in shapes if target == 1.3} == {16, 32, 64, 128, 256, 384}
    assert {tokens for _, tokens, target in shapes if target == 1.0} == {1024, 2048, 4096}
    assert {s for _, _, _, s in linear.cases()} == {0.0, 0.6, 0.8, 0.9}
    assert {n for n, *_ in linear.cases()} == {1024, 2048, 4096, 8192}
    assert linear.TARGET_AT[0.8] == 2.0
    assert memory.OF_COPY_BANDWIDTH == 0.85


def test_a_wrong_answer_is_found() -> None:
    run.check("ones", torch.ones(3), [torch.ones(3)], 0.0)
    with pytest.raises(WrongAnswerError, match="shape"):
        run.check("ones", torch.ones(3), torch.ones(4), 0.0)
    for wrong in (torch.tensor([1.0, 1.1]), torch.tensor([1.0, float("nan")])):
        with pytest.raises(WrongAnswerError, match="error"):
            run.check("ones", wrong, torch.ones(2), 1e-3)


class _Side:
    captured = True


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> run.GpuBench:
    """A bench whose GPU takes 1 ms for our side and 2, 3, … for the peers."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(run.Side, "of", lambda side: _Side())
    monkeypatch.setattr(
        run,
        "time_in_turns",
        lambda sides, seconds: [Timing.of([[(i + 1.0) / 1e3]]) for i in range(len(sides))],
    )
    return run.GpuBench(json=tmp_path / "rows.json")


def _case(found: Any) -> Case:
    one = torch.ones(2)
    return Case("case", "shape", "float16", lambda: found, one, 1e-3, Target(2.5, "float16"))


def _peer(name: str, found: Any) -> Peer:
    return Peer(name, "float16", lambda: found, torch.ones(2), 1e-3)


def test_rows_and_the_target_on_the_best_peer(bench: run.GpuBench) -> None:
    one = torch.ones(2)
    bench.compare(_case(one), [_peer("first", one), _peer("second", one)])
    assert bench.json is not None
    told = json.loads(bench.json.read_text("utf-8"))
    assert [row["peer"] for row in told["rows"]] == ["first", "second"]
    assert [row["ratio"] for row in told["rows"]] == [2.0, 3.0]
    assert [row["met"] for row in told["rows"]] == [False, None]


def test_a_wrong_side_is_left_out_and_the_next_one_measured(bench: run.GpuBench) -> None:
    one, wrong = torch.ones(2), torch.zeros(2)
    bench.compare(_case(wrong), [_peer("first", one)])
    assert bench.rows == []
    bench.compare(_case(one), [_peer("first", wrong), _peer("second", one)])
    assert [row.peer for row in bench.rows] == ["second"]
    assert len(bench.left_out) == 2


def test_no_case_is_begun_when_the_time_is_over(bench: run.GpuBench) -> None:
    assert bench.wants("case", "shape")
    bench.budget = -1.0
    assert not bench.wants("case", "shape")
    assert "over" in bench.left_out[0]
