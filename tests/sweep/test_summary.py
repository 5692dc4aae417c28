"""Means, paired differences, intervals and tables of rows whose predictions are made up."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spatile.finetune.metrics import f1, paired_difference
from spatile.report.text import table_text
from spatile.sweep import read_rows, summarize
from spatile.sweep.rows import decode, write_rows
from spatile.sweep.summary import _Scores, break_even, compare_methods
from spatile.sweep.tables import markdown, tables_of

from .conftest import LABELS, document, noisy, two_seeds


@pytest.mark.parametrize("undefined", [0, 1])
def test_an_undefined_seed_is_the_worst_one(undefined: int) -> None:
    rows = two_seeds()
    rows["rows"][undefined]["value"] = None
    first = summarize(rows)[0]
    assert math.isnan(first.worst)


def test_means_losses_and_the_worst_seed() -> None:
    a, b = summarize(two_seeds())
    assert (a.pattern, a.method, a.sparsity, a.seeds) == ("tile", "a", 0.5, 2)
    assert a.mean.value == pytest.approx(0.84)
    assert a.dense == pytest.approx(0.89)
    assert a.loss.value == pytest.approx(0.05)
    assert a.worst == pytest.approx(0.82)
    assert b.loss.value == pytest.approx(-0.01)
    for estimate in (a.mean, a.loss, b.mean, b.loss):
        assert estimate.low < estimate.value < estimate.high


def test_the_loss_is_paired_with_the_dense_model_of_the_same_seed() -> None:
    """Where every model is its dense one, there is no loss, however the two seeds differ."""
    dense = [noisy(10, 0), noisy(30, 1)]
    same = document({("tile", "a", 0.5): dense}, labels=LABELS, dense=dense)
    loss = summarize(same)[0].loss
    assert (loss.value, loss.low, loss.high) == (0.0, 0.0, 0.0)
    assert summarize(same)[0].mean.high - summarize(same)[0].mean.low > 0.1


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews"])
def test_one_seed_has_the_interval_of_the_paired_difference(metric: str) -> None:
    dense, pruned = noisy(10, 0), noisy(16, 1)
    rows = document({("tile", "a", 0.5): [pruned]}, labels=LABELS, dense=[dense], metric=metric)
    loss = summarize(rows)[0].loss
    expected = paired_difference(metric, decode(LABELS), decode(dense), decode(pruned))
    assert loss.value == pytest.approx(expected.value)
    assert loss.low == pytest.approx(expected.low, abs=0.02)
    assert loss.high == pytest.approx(expected.high, abs=0.02)


def test_seeds_that_differ_widen_the_interval() -> None:
    dense = [noisy(10, 0)] * 2
    alike = document({("tile", "a", 0.5): [noisy(20, 1)] * 2}, labels=LABELS, dense=dense)
    apart = document({("tile", "a", 0.5): [noisy(5, 1), noisy(35, 2)]}, labels=LABELS, dense=dense)
    widths = [s.loss.high - s.loss.low for s in (summarize(alike)[0], summarize(apart)[0])]
    assert widths[1] > 1.5 * widths[0]


def test_few_seeds_widen_the_interval_as_students_t_does() -> None:
    """Where dev rows decide nothing, it is that of the mean of three numbers."""
    values = np.array([0.80, 0.83, 0.90])
    series = np.repeat(values[:, None], 1 + 2000, axis=1)
    scores = _Scores(two_seeds(), "accuracy")
    found = scores.estimate(series)
    half = 4.302653 * values.std(ddof=1) / np.sqrt(3)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.15)
    assert found.low < values.mean() < found.high


def test_the_floor_is_cleared_only_by_more_than_the_interval() -> None:
    cells = {
        ("tile", "good", 0.5): [noisy(10, 2)] * 2,
        ("tile", "constant", 0.5): ["1" * 100] * 2,
        ("tile", "close", 0.5): [noisy(36, 3)] * 2,
    }
    rows = document(cells, labels=LABELS, dense=[noisy(8, 0)] * 2)
    found = {s.method: s for s in summarize(rows)}
    assert [found[m].above_floor for m in ("good", "constant", "close")] == [True, False, False]
    assert found["constant"].floor == pytest.approx(0.6)
    assert found["close"].mean.value > 0.6


def test_f1_is_that_of_the_positive_class() -> None:
    rows = two_seeds("f1")
    dense = [f1(decode(LABELS), decode(rows["dev"][f"dense seed {s}"])).value for s in (0, 1)]
    assert summarize(rows)[0].dense == pytest.approx(np.mean(dense))


def test_regression_is_scored_by_correlation() -> None:
    random = np.random.default_rng(0)
    y = random.standard_normal(50)
    rows = document({("tile", "a", 0.5): ["0" * 50]}, labels="01" * 25, dense=["01" * 25])
    rows |= {"metrics": ["pearson"], "majority": None, "kind": "regression"}
    rows["dev"] = {
        "labels": y.tolist(),
        "dense seed 0": (y + 0.1 * random.standard_normal(50)).tolist(),
        "tile a 0.5 seed 0": (y + random.standard_normal(50)).tolist(),
    }
    rows["rows"][0] |= {"metric": "pearson", "value": 0.7, "floor": None}
    found = summarize(rows)[0]
    expected = [np.corrcoef(y, rows["dev"][name])[0, 1] for name in list(rows["dev"])[1:]]
    assert found.dense == pytest.approx(expected[0])
    assert found.mean.value == pytest.approx(expected[1])
    assert not found.above_floor


def test_methods_are_compared_with_the_first() -> None:
    (found,) = compare_methods(two_seeds())
    assert (found.configuration, found.other) == (("tile", "b", 0.5, 1.0, 1.0), "a")
    assert found.difference.value == pytest.approx(0.06)
    assert found.difference.low < 0.06 < found.difference.high


def test_break_even_is_the_lowest_sparsity_that_is_faster() -> None:
    latency = {
        ("tile", "a", 0.3): 2.5,
        ("tile", "a", 0.5): 1.9,
        ("tile", "a", 0.7): 1.0,
        ("row", "a", 0.3): 3.0,
    }
    cells = {key: [noisy(10, 1)] for key in latency}
    rows = document(cells, labels=LABELS, dense=[noisy(9, 0)], latency=latency)
    found = break_even(summarize(rows))
    tile = found["tile", "a"]
    assert tile is not None
    assert tile.sparsity == 0.5
    assert found["row", "a"] is None
    text = "\n".join(str(table.rows) for table in tables_of(rows))
    assert "nowhere (up to 30 %)" in text


def test_break_even_is_no_noise_of_the_clock() -> None:
    """Neither equal operations, nor a few per cent, nor what a sparser model takes back."""
    latency = {
        ("element", "a", 0.3): 1.5,
        ("element", "a", 0.5): 1.96,
        ("element", "a", 0.7): 1.91,
        ("element", "a", 0.9): 1.0,
        ("tile", "a", 0.5): 1.5,
        ("tile", "a", 0.7): 1.95,
        ("column", "a", 0.5): 1.0,
        ("row", "a", 0.5): 1.91,
    }
    cells = {key: [noisy(10, 1)] for key in latency}
    rows = document(cells, labels=LABELS, dense=[noisy(9, 0)], latency=latency)
    for row in rows["rows"]:
        if (row["pattern"], row["sparsity"]) in (("element", 0.3), ("column", 0.5)):
            row["multiply_adds"] = row["dense_multiply_adds"]
    rows["rows"][1]["achieved"], rows["rows"][2]["achieved"] = 0.71, 0.69
    found = {key[0]: s and s.sparsity for key, s in break_even(summarize(rows)).items()}
    # Of element's two that differ by nothing the slower one has more of the weights gone.
    assert found == {"element": 0.9, "tile": None, "column": None, "row": None}
    rows["rows"][1]["latency_ms"] = rows["rows"][1]["latency_min_ms"] = 1.9
    rows["rows"][2]["latency_ms"] = rows["rows"][2]["latency_min_ms"] = 1.9
    assert break_even(summarize(rows))["element", "a"].sparsity == 0.7  # type: ignore[union-attr]


def test_what_is_gone_of_the_weights_is_shown_where_groups_do_not_say_it() -> None:
    from spatile.sweep.plots import plots_of

    latency = {("row", "a", 0.5): 1.0, ("tile", "a", 0.5): 1.0}
    cells = {key: [noisy(10, 1)] for key in latency}
    rows = document(cells, labels=LABELS, dense=[noisy(9, 0)], latency=latency)
    rows["rows"][0]["achieved"], rows["rows"][1]["achieved"] = 0.576, 0.504
    assert [s.achieved for s in summarize(rows)] == [0.576, 0.504]
    grid, every, even = tables_of(rows)
    assert grid.rows == (("row", "90.0 (−1.0) [57.6 %]"), ("tile", "90.0 (−1.0)"))
    assert [row[every.heads.index("pruned")] for row in every.rows] == ["50 % [57.6 %]", "50 %"]
    assert even.rows[0][2] == "50 % [57.6 %] (the lowest measured)"
    for table in (grid, every, even):
        assert any("share of the pattern's groups" in note for note in table.notes)
    sparsity, time = plots_of(rows)
    assert "weights that are gone" in sparsity[2]
    assert ">58<" in time[2]
    rows["rows"][0]["achieved"] = 0.496
    for table in tables_of(rows):
        assert not any("share of the pattern's groups" in note for note in table.notes)


def test_what_is_not_above_the_floor_is_bold_in_markdown_alone() -> None:
    rows = document({("tile", "a", 0.5): ["1" * 100]}, labels=LABELS, dense=[noisy(9, 0)])
    every = next(t for t in tables_of(rows) if t.title == "Every configuration")
    assert "**" not in table_text(every)
    assert " NO " in table_text(every)
    assert "| **no** |" in markdown(every)


def test_a_speedup_holds_in_medians_and_in_minima() -> None:
    rows = document(
        {("tile", "a", 0.5): [noisy(10, 1)]},
        labels=LABELS,
        dense=[noisy(9, 0)],
        latency={("tile", "a", 0.5): 1.0},
    )
    rows["rows"][0]["latency_min_ms"] = 1.6
    assert summarize(rows)[0].speedup == pytest.approx(1.25)


# ---- tokens and heads


def kept() -> dict[str, Any]:
    return document(
        {
            ("tile", "as-is", 0.0, 1.0, 1.0): [noisy(10, 0)],
            ("tile", "as-is", 0.0, 0.5, 1.0): [noisy(14, 2)],
            ("tile", "as-is", 0.0, 0.5, 0.75): [noisy(20, 3)],
            ("tile", "default", 0.0, 0.5, 1.0): [noisy(11, 4)],
        },
        labels=LABELS,
        dense=[noisy(10, 0)],
    )


def test_what_is_kept_tells_configurations_apart() -> None:
    whole, half, fewer, trained = summarize(kept())
    assert [s.operations for s in (whole, half, fewer, trained)] == [1.0, 0.5, 0.375, 0.5]
    assert (whole.loss.value, whole.loss.low, whole.loss.high) == (0.0, 0.0, 0.0)
    assert half.loss.value == pytest.approx(0.04)
    assert fewer.configuration.name == "tile as-is 0 tokens 0.5 heads 0.75"
    (compared,) = compare_methods(kept())
    assert compared.configuration == trained.configuration
    assert compared.difference.value == pytest.approx(0.03)


def test_what_is_kept_has_a_table_of_its_own_and_no_break_even() -> None:
    rows = kept()
    for row in rows["rows"]:
        row["latency_ms"] = row["latency_min_ms"] = 1.0
    grid, trained, every, methods = tables_of(rows)
    assert grid.heads == ("heads \\ tokens", "100 %", "50 %")
    assert grid.rows == (("100 %", "90.0 (0.0)", "86.0 (−4.0)"), ("75 %", "", "80.0 (−10.0)"))
    assert trained.rows == (("100 %", "89.0 (−1.0)"),)
    assert every.heads[:4] == ("tokens", "heads", "method", "accuracy")
    assert [row[every.heads.index("operations, dense / this")] for row in every.rows] == [
        "1.00×", "2.00×", "2.67×", "2.00×",
    ]  # fmt: skip
    assert methods.heads[:3] == ("tokens", "heads", "methods")
    assert methods.rows[0][:3] == ("50 %", "100 %", "default − as-is")


def test_what_is_kept_is_drawn_over_operations() -> None:
    from spatile.sweep.plots import plots_of

    ((name, _, svg),) = plots_of(kept())
    assert name == "operations"
    for words in ("majority class", ">dense<", "heads 75 %, as-is", "heads 100 %, default"):
        assert words in svg


def test_rows_of_an_earlier_version_keep_everything(tmp_path: Path) -> None:
    rows = two_seeds()
    for row in rows["rows"]:
        for name in ("keep_tokens", "keep_heads", "multiply_adds", "dense_multiply_adds"):
            del row[name]
    write_rows(rows, tmp_path)
    found = summarize(read_rows(tmp_path))
    assert {s.configuration[3:] for s in found} == {(1.0, 1.0)}
    assert {s.operations for s in found} == {None}


# ---- rows that don't fit together


def test_a_method_without_one_of_the_seeds_is_named() -> None:
    rows = two_seeds()
    rows["rows"] = [r for r in rows["rows"] if (r["method"], r["seed"]) != ("b", 1)]
    words = r"tile b 0\.5 has seeds 0, expected 0, 1: seed 1 is missing"
    for read in (summarize, compare_methods, tables_of):
        with pytest.raises(ValueError, match=words):
            read(rows)


def test_a_seed_that_is_there_twice_is_named() -> None:
    rows = two_seeds()
    rows["rows"].append(copy.deepcopy(rows["rows"][0]))
    with pytest.raises(ValueError, match=r"tile a 0\.5 has seeds 0, 0, 1, expected 0, 1"):
        summarize(rows)


def test_seeds_scored_on_other_dev_rows_are_named(tmp_path: Path) -> None:
    rows = two_seeds()
    rows["rows"][1]["dev_rows"] = 99
    words = r"tile a 0\.5 seed 1.* 99 dev rows, expected 100"
    with pytest.raises(ValueError, match=words):
        summarize(rows)
    write_rows(rows, tmp_path)
    with pytest.raises(ValueError, match=words):
        read_rows(tmp_path)


def test_predictions_for_other_dev_rows_are_named(tmp_path: Path) -> None:
    rows = two_seeds()
    rows["dev"]["dense seed 1"] = "01"
    write_rows(rows, tmp_path)
    with pytest.raises(ValueError, match="dense seed 1 has 2 dev rows, expected 100"):
        read_rows(tmp_path)


def test_predictions_that_are_missing_are_named() -> None:
    rows = two_seeds()
    del rows["dev"]["tile a 0.5 seed 1"]
    with pytest.raises(ValueError, match=r"predictions of tile a 0\.5 seed 1 are missing"):
        summarize(rows)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "format is not"),
        ('{"format": "spatile.sweep.rows", "version": 9}', "version is 9"),
        ('{"format": "spatile.sweep.rows", "version": 1}', "'task' is missing"),
    ],
)
def test_damaged_rows_are_named(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(ValueError, match=f"rows.json: {words}"):
        read_rows(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected the rows of a sweep"):
        read_rows(tmp_path / "other.json")
