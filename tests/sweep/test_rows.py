"""Rows as files, and the document and plots that are made of them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

import spatile
from spatile.sweep import read_rows, write_document
from spatile.sweep.code import code_version
from spatile.sweep.document import render_document
from spatile.sweep.rows import COLUMNS, dev_order, write_rows

from .conftest import two_seeds


def test_rows_are_written_and_read_as_they_are(tmp_path: Path) -> None:
    rows = two_seeds()
    write_rows(rows, tmp_path)
    found = read_rows(tmp_path)
    assert {k: found[k] for k in rows} == rows
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert len(lines) == 1 + len(rows["rows"])
    json_lines = (tmp_path / "rows.json").read_text().splitlines()
    assert sum('"pattern": "tile"' in line for line in json_lines) == len(rows["rows"])


def test_dev_rows_are_held_by_label_and_not_in_their_order() -> None:
    labels = np.arange(50) % 3
    order = dev_order(labels)
    assert sorted(order) == list(range(50))
    assert (np.diff(labels[order]) >= 0).all()
    first = order[labels[order] == 0]
    assert (np.diff(first) < 0).any()


def test_a_document_has_the_command_the_time_and_all_tables(tmp_path: Path) -> None:
    rows = two_seeds()
    for row in rows["rows"]:
        row["latency_ms"] = row["latency_min_ms"] = 1.0
    write_rows(rows, tmp_path)
    (tmp_path / "docs" / "results").mkdir(parents=True)
    file = tmp_path / "docs" / "results" / "mine.json"
    (tmp_path / "rows.json").rename(file)
    target = tmp_path / "docs" / "results.md"
    write_document([file], target)
    text = target.read_text("utf-8")
    assert text == render_document([file], target)
    assert "```sh\nspatile sweep\n```" in text
    assert "Took 1 min 15 s" in text
    assert "| tile | a | 84.0 (−5.0) |" in text
    assert "| tile | 50 % | b − a | +6.0 [" in text
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links == ["results/mine.json", "results/mine.sparsity.svg", "results/mine.latency.svg"]
    for link in links:
        assert (target.parent / link).is_file(), link


def test_a_document_says_which_code_and_which_dense_models(tmp_path: Path) -> None:
    rows = two_seeds()
    rows["command"] = "spatile sweep --model m --data d/x --lr 0.001 --dense other --out mine"
    rows["machine"] = {
        "processor": "P", "cores": 2, "jobs": 1, "threads": 1, "spatile": "0.1.0", "tier": "t",
        "torch": "2", "code": ["0.1.0", "abc", "def-dirty"],
    }  # fmt: skip
    write_rows(rows, tmp_path)
    file, target = tmp_path / "rows.json", tmp_path / "results.md"
    text = render_document([file], target)
    assert "spatile 0.1.0 (abc, def-dirty) tier t" in text
    assert "`--dense other`: the dense models of a sweep with the same `--model`" in text
    assert "--out other" not in text  # an earlier version did not note the settings
    settings = {"data_seed": 0, "lr": 1e-3, "prunings": 1, "bf16": True}
    write_rows({**rows, "settings": settings, "dense_seconds": 125.0}, tmp_path)
    dense = "--sparsity 0 --methods as-is --seeds 0,1 --lr 0.001 --bf16 --out other\n"
    assert f"spatile sweep --model m --data d/x {dense}" in render_document([file], target)
    text = render_document([file], target)
    assert "of another sweep, whose training took 2 min 5 s, added up over the seeds" in text
    for code in ([], ["0.1.0"]):
        write_rows({**rows, "machine": {**rows["machine"], "code": code}}, tmp_path)
        assert "spatile 0.1.0 tier t" in render_document([file], target)


def test_the_code_is_the_commit_of_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "checkout" / "python" / "spatile"
    package.mkdir(parents=True)
    monkeypatch.setattr(spatile, "__file__", str(package / "__init__.py"))
    find = code_version.__wrapped__
    assert find() == spatile.__version__

    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(tmp_path / "checkout"), *who, *words], check=True)

    git("init", "-q")
    assert find() == spatile.__version__  # a repository, but not spatile's
    (tmp_path / "checkout" / "csrc").mkdir()
    assert find() == spatile.__version__  # nothing is committed
    (package / "__init__.py").write_text("")
    git("add", ".")
    git("commit", "-qm", "first")
    assert re.fullmatch("[0-9a-f]{12}", find())
    (package / "__init__.py").write_text("1")
    assert re.fullmatch("[0-9a-f]{12}-dirty", find())


def test_every_plot_has_the_floor_and_the_dense_models(tmp_path: Path) -> None:
    from spatile.sweep.plots import plots_of

    rows = two_seeds()
    for row in rows["rows"]:
        row["latency_ms"] = row["latency_min_ms"] = 1.0
    plots = plots_of(rows)
    assert [name for name, _, _ in plots] == ["sparsity", "latency"]
    for _, _, svg in plots:
        assert "majority class" in svg
        assert ">dense<" in svg
        assert "tile, a" in svg
        assert len(svg) < 60_000


def test_rows_that_can_not_be_summarized_write_nothing(tmp_path: Path) -> None:
    rows = two_seeds()
    del rows["rows"][0]
    write_rows(rows, tmp_path)
    with pytest.raises(ValueError, match="seed 0 is missing"):
        write_document([tmp_path / "rows.json"], tmp_path / "results.md")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.csv", "rows.json"]


def test_labels_are_the_only_trace_of_the_data(tmp_path: Path) -> None:
    write_rows(two_seeds(), tmp_path)
    dev = json.loads((tmp_path / "rows.json").read_text())["dev"]
    assert re.fullmatch("0*1*", dev["labels"])
