"""A sweep over the small model and task that the pipeline's tests use, and made-up rows."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spatile.cli import main
from spatile.sweep import read_rows
from spatile.sweep.configuration import Configuration
from spatile.sweep.rows import decode, encode
from tests.finetune.conftest import tiny_data, tiny_model  # noqa: F401

GRID = ["--patterns=tile,row", "--sparsity=0.5,0.8", "--methods=none", "--seeds=0,1"]
SHORT = [
    "--epochs-dense=2", "--epochs-reweighted=1", "--epochs-retrain=1", "--batch-size=4",
    "--lr=3e-3", "--max-length=64", "--linear=spatile",
]  # fmt: skip
Capture = pytest.CaptureFixture[str]
Start = Callable[..., "subprocess.Popen[str]"]
Key = tuple[str, str, float] | tuple[str, str, float, float, float]


@dataclass(frozen=True)
class Swept:
    """A sweep that came to its end, and the arguments that made it."""

    folder: Path
    arguments: list[str]


@pytest.fixture(scope="session")
def base(tiny_model: Path, tiny_data: Path) -> list[str]:  # noqa: F811
    """``sweep`` with a model, data and settings, but no grid."""
    return ["sweep", "--model", str(tiny_model), "--data", str(tiny_data), *SHORT]


@pytest.fixture(scope="session")
def swept(base: list[str], tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Two patterns × two sparsities × two seeds."""
    out = tmp_path_factory.mktemp("sweeps") / "whole"
    arguments = [*base, *GRID]
    how = ["--jobs=2", "--threads=1", "--timing-rounds=1", "--quiet"]
    assert main([*arguments, *how, "--out", str(out)]) == 0
    return Swept(out, arguments)


@pytest.fixture
def copied(swept: Swept, tmp_path: Path) -> Swept:
    """The whole sweep in a folder of its own, to be changed."""
    shutil.copytree(swept.folder, tmp_path / "copy")
    return Swept(tmp_path / "copy", swept.arguments)


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


@pytest.fixture(scope="session")
def start() -> Start:
    """Starts ``spatile`` in a process of its own."""

    def run(arguments: Sequence[str], **how: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "spatile", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            # Where the tests run in the background of a shell, Ctrl-C is ignored from birth.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **how,
        )

    return run


def document(
    cells: Mapping[Key, Sequence[str]],
    *,
    labels: str,
    dense: Sequence[str],
    metric: str = "accuracy",
    latency: Mapping[Key, float] | None = None,
) -> dict[str, Any]:
    """Rows of a made-up sweep: predictions as digits, one string per seed."""
    from spatile.finetune.metrics import evaluate, majority_floor
    from spatile.sweep.rows import decode

    y = decode(labels)

    def score(predictions: str) -> float:
        found: float = evaluate([metric], y, decode(predictions))[metric].value
        return found

    floor = majority_floor(y, y, [metric])[metric].value
    rows, dev = [], {"labels": labels}
    for seed, predictions in enumerate(dense):
        dev[f"dense seed {seed}"] = predictions
    for key, seeds in cells.items():
        ms = None if latency is None else latency[key]
        configuration = Configuration(*key)
        # As if every layer did as much: tokens and heads are shares of the operations.
        share = (1 - configuration.sparsity) * configuration.keep_tokens * configuration.keep_heads
        for seed, predictions in enumerate(seeds):
            dev[configuration.with_seed(seed)] = predictions
            rows.append(
                {
                    "task": "made-up", **configuration._asdict(), "seed": seed, "metric": metric,
                    "multiply_adds": 1e6 * share, "dense_multiply_adds": 1e6,
                    "value": score(predictions), "dense": score(dense[seed]),
                    "latency_ms": ms, "dense_latency_ms": 2.0, "torch_latency_ms": 4.0,
                    "latency_min_ms": ms, "dense_latency_min_ms": 2.0,
                    "torch_latency_min_ms": 4.0, "pruned": None, "floor": floor,
                    "achieved": configuration.sparsity, "dev_rows": len(labels),
                    "threads": 1, "seconds": 1.0,
                }
            )  # fmt: skip
    return {
        "task": "made-up", "metrics": [metric], "kind": "classification", "positive": 1,
        "majority": int(y.sum() * 2 > len(y)), "model": "small", "command": "spatile sweep",
        "seconds": 75.0, "machine": {}, "train_rows": len(labels),
        "seeds": list(range(len(dense))), "methods": {key[1]: {} for key in cells},
        "floor": {metric: floor}, "rows": rows, "dev": dev,
    }  # fmt: skip


LABELS = "0" * 40 + "1" * 60


def noisy(wrong: int, seed: int) -> str:
    """Predictions of which ``wrong`` are wrong, at random places."""
    y = decode(LABELS)
    at = np.random.default_rng(seed).choice(len(y), wrong, replace=False)
    y[at] = 1 - y[at]
    return str(encode(y))


def two_seeds(metric: str = "accuracy") -> dict[str, Any]:
    return document(
        {
            ("tile", "a", 0.5): [noisy(14, 2), noisy(18, 3)],
            ("tile", "b", 0.5): [noisy(10, 4), noisy(10, 5)],
        },
        labels=LABELS,
        dense=[noisy(10, 0), noisy(12, 1)],
        metric=metric,
    )
