"""The benchmarks run, check before they time, and write what they measured."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

import spatile as sp
from benchmarks.harness import Bench, measure


@pytest.fixture(autouse=True)
def _threads_as_before() -> object:
    before = sp.num_threads()
    yield
    sp.set_num_threads(before)


@pytest.mark.parametrize(
    ("name", "only", "lines"),
    [
        ("linear", "128 × 384 → 1536, 80%", 1),
        ("attention", "1 × 32 ×", 2),
        ("regularizer", "group_", 4),
    ],
)
def test_runs_and_writes(name: str, only: str, lines: int, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    main = importlib.import_module(f"benchmarks.{name}").main
    main(["--seconds", "0", "--threads", "1", "--only", only, "--json", str(file)])
    written = json.loads(file.read_text("utf-8"))
    assert written["tier"] == sp.info()["cpu"]["tier"]
    assert written["versions"]["spatile"] == sp.__version__
    assert len(written["results"]) == lines
    for result in written["results"]:
        assert result["ratio"] > 0
        assert 0 < result["ours"]["minimum"] <= result["ours"]["median"]
        assert result["error"] < 1e-4


def test_a_wrong_answer_has_no_speed() -> None:
    bench = Bench("wrong", ["--seconds", "0"])
    with pytest.raises(AssertionError, match="is over"):
        bench.compare("x", lambda: np.ones(3), lambda: None, reference=np.zeros(3), tolerance=1e-6)
    with pytest.raises(AssertionError, match="is not"):
        bench.compare("x", lambda: np.ones(3), lambda: None, reference=np.ones(4), tolerance=1e-6)
    assert not bench.results


def test_sides_take_turns() -> None:
    calls: list[str] = []
    measure(lambda: calls.append("ours"), lambda: calls.append("peer"), seconds=0.0)
    runs = [side for i, side in enumerate(calls) if i == 0 or calls[i - 1] != side]
    assert runs == ["ours", "peer"] * (len(runs) // 2)
    assert len(runs) >= 8
