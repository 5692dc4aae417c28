"""Sweeps over shares of tokens and heads, with the dense models as they are and trained further."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spatile.cli import main
from spatile.finetune import RunFolder
from spatile.finetune.data import load_task
from spatile.inference import Encoder
from spatile.sparsity import Schedule
from spatile.sweep import read_rows
from spatile.sweep.folder import SweepFolder
from spatile.sweep.rows import predictions

from .conftest import Swept

KEPT = ["--keep-tokens=1,0.75", "--keep-heads=1,0.8", "--seeds=0,1"]
HOW = ["--jobs=2", "--threads=1", "--timing-rounds=1", "--quiet"]


@pytest.fixture(scope="module")
def kept(swept: Swept, base: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid of tokens and heads without training, from the dense models of the other sweep."""
    out = tmp_path_factory.mktemp("kept") / "kept"
    dense = ["--dense", str(swept.folder)]
    assert main([*base, *KEPT, "--methods=as-is", *HOW, *dense, "--out", str(out)]) == 0
    return out


def test_values_and_operations_are_the_engines(kept: Path, tiny_data: Path) -> None:
    folder = SweepFolder.open(kept)
    task = load_task(tiny_data)
    document = read_rows(kept)
    rows = [row for row in document["rows"] if row["metric"] == "accuracy"]
    assert [(r["keep_tokens"], r["keep_heads"], r["seed"]) for r in rows] == [
        (t, h, s) for t in (1.0, 0.75) for h in (1.0, 0.8) for s in (0, 1)
    ]
    for cell, row in zip(folder.spec.cells(), rows, strict=True):
        encoder = Encoder.load(
            folder.dense_checkpoint(cell.seed),
            tokens=Schedule.linear(row["keep_tokens"]),
            heads=Schedule.linear(row["keep_heads"]),
        )
        found = encoder.predict(task.dev.texts, task.dev.pairs, batch_size=1)
        assert row["value"] == np.mean(found.logits.argmax(axis=1) == task.dev.labels)
        assert document["dev"][cell.name] == predictions(task, found.logits)
        assert found.cost is not None
        assert row["multiply_adds"] == found.cost.actual.multiply_adds / 24
        assert row["dense_multiply_adds"] == found.cost.dense.multiply_adds / 24


def test_what_keeps_everything_is_the_dense_model(kept: Path) -> None:
    document = read_rows(kept)
    for seed in (0, 1):
        assert document["dev"][f"tile as-is 0 seed {seed}"] == document["dev"][f"dense seed {seed}"]
    whole = [r for r in document["rows"] if (r["keep_tokens"], r["keep_heads"]) == (1.0, 1.0)]
    assert len(whole) == 4
    for row in whole:
        assert (row["value"], row["achieved"], row["pruned"]) == (row["dense"], 0.0, None)
        assert row["multiply_adds"] == row["dense_multiply_adds"]
    fewer = [r for r in document["rows"] if r["keep_tokens"] < 1.0]
    assert all(row["multiply_adds"] < row["dense_multiply_adds"] for row in fewer)


def test_every_configuration_is_timed_with_its_schedules(kept: Path) -> None:
    for row in read_rows(kept)["rows"]:
        assert row["latency_ms"] > 0
    assert len(list(kept.glob("cells/*/timing.json"))) == 4
    assert not list(kept.glob("cells/*/run/packed"))
    text = (kept / "results.md").read_text("utf-8")
    for words in ("--keep-tokens 1,0.75 --keep-heads 1,0.8 --methods as-is", "heads \\ tokens"):
        assert words in text
    assert (kept / "rows.operations.svg").read_text("utf-8").startswith("<svg")


def test_tiles_tokens_and_heads_are_trained_together(
    swept: Swept, base: list[str], tiny_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "all"
    grid = ["--sparsity=0.5", "--keep-tokens=0.75", "--keep-heads=0.8", "--seeds=0"]
    method = "--methods=short=saliency:magnitude;prunings:1"
    assert main([*base, *grid, method, *HOW, "--dense", str(swept.folder), "--out", str(out)]) == 0
    (row,) = (row for row in read_rows(out)["rows"] if row["metric"] == "accuracy")
    assert (row["keep_tokens"], row["keep_heads"], row["sparsity"]) == (0.75, 0.8, 0.5)
    assert row["achieved"] == pytest.approx(0.5, abs=0.03)
    assert row["multiply_adds"] < 0.5 * row["dense_multiply_adds"]
    folder = SweepFolder.open(out)
    (cell,) = folder.spec.cells()
    logits = RunFolder.open(folder.run(cell)).logits("retrained")
    assert row["value"] == np.mean(logits.argmax(axis=1) == load_task(tiny_data).dev.labels)
    assert row["latency_ms"] > 0
