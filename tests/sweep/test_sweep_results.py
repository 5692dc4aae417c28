"""What a sweep on the small model leaves: rows, times, models, tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spatile.cli import main
from spatile.finetune import RunFolder
from spatile.finetune.data import load_task
from spatile.finetune.metrics import accuracy
from spatile.inference import Encoder
from spatile.sweep import read_rows
from spatile.sweep.code import code_version
from spatile.sweep.folder import SweepFolder

from .conftest import Swept

CELLS = 8


def test_rows_have_every_cell_and_metric(swept: Swept) -> None:
    document = read_rows(swept.folder)
    rows = document["rows"]
    assert len(rows) == 2 * CELLS
    keys = {(r["pattern"], r["method"], r["sparsity"], r["seed"], r["metric"]) for r in rows}
    assert len(keys) == 2 * CELLS
    assert document["metrics"] == ["accuracy", "f1"]
    assert document["missing"] == []
    assert document["machine"]["code"] == [code_version()]
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


def test_structure_kept_whole_and_timed_on_two_threads(
    swept: Swept, base: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "structure"
    grid = ["--patterns=structure", "--sparsity=0.5", "--methods=default", "--seeds=0"]
    how = ["--keep", "--latency-threads=2", "--timing-rounds=1", "--quiet"]
    assert main([*base, *grid, *how, "--dense", str(swept.folder), "--out", str(out)]) == 0
    folder, document = SweepFolder.open(out), read_rows(out)
    assert "--latency-threads 2" in document["command"]
    for row in document["rows"]:
        assert row["achieved"] == pytest.approx(0.5, abs=0.05)
        assert row["multiply_adds"] < row["dense_multiply_adds"]
        assert row["threads"] == 2
    (cell,) = folder.spec.cells()
    packed = Encoder.load(folder.run(cell) / "packed")
    shapes = packed.architecture.structure
    assert any(len(k.neurons) < shapes.n_neurons for k in shapes.layers)
    assert (folder.run(cell) / "stages" / "retrained" / "model.safetensors").is_file()
