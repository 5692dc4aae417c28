"""Scores and their intervals, against hand-computed values, scikit-learn and SciPy."""

from __future__ import annotations

import doctest
import json
import math
from pathlib import Path

import numpy as np
import pytest

from spatile.finetune import metrics as m
from spatile.finetune.data import load_task
from spatile.finetune.intervals import newcombe, wilson

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def classified(n, classes=2, right=0.7, seed=0):
    """Labels and predictions of a model that is right that often and else guesses."""
    random = np.random.default_rng(seed)
    y = random.integers(classes, size=n)
    return y, np.where(random.random(n) < right, y, random.integers(classes, size=n))


def examples(name, n, noise=0.6, seed=0):
    """Labels and predictions that suit the metric, the worse the more noise."""
    if name in ("accuracy", "f1", "matthews"):
        return classified(n, right=1 - noise, seed=seed)
    y = np.random.default_rng(seed).normal(size=n)
    return y, y + noise * np.random.default_rng(seed + 1).normal(size=n)


# ---- values


def test_values_by_hand():
    # TP 3, FP 1, FN 2, TN 4
    y = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    p = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert m.accuracy(y, p).value == 0.7
    assert m.f1(y, p).value == pytest.approx(6 / 9)
    assert m.f1(y, p, positive=0).value == pytest.approx(8 / 11)
    assert m.matthews(y, p).value == pytest.approx((3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6))
    assert m.pearson([1, 2, 3, 4], [1, 3, 2, 4]).value == pytest.approx(0.8)
    # ranks of the second: 1.5, 1.5, 3, 4
    assert m.spearman([1, 2, 3, 4], [5, 5, 6, 60]).value == pytest.approx(4.5 / math.sqrt(5 * 4.5))


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("n", [1, 2, 5, 60, 408])
def test_class_metrics_equal_scikit_learn(n, classes):
    sklearn = pytest.importorskip("sklearn.metrics")
    for seed in range(5):
        y, p = classified(n, classes, seed=seed)
        assert m.accuracy(y, p).value == pytest.approx(sklearn.accuracy_score(y, p))
        # scikit-learn's Matthews correlation of one class is 0 and warns; so is ours, silently.
        single = len(np.unique(y)) == 1 or len(np.unique(p)) == 1
        expected = 0.0 if single else sklearn.matthews_corrcoef(y, p)
        assert m.matthews(y, p).value == pytest.approx(expected, abs=1e-12)
        for c in range(classes):
            expected = sklearn.f1_score(y == c, p == c, zero_division=0.0)
            assert m.f1(y, p, positive=c).value == pytest.approx(expected)


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_correlations_equal_scipy(decimals):
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(decimals)
    for n in (3, 30, 1500):
        x = (random.normal(size=n) * 2).round(decimals)
        x[0] += 1.0
        y = (x + random.normal(size=n)).round(decimals).astype(np.float32)
        y[1] += 1.0
        assert m.pearson(x, y).value == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-12)
        assert m.spearman(x, y).value == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)


def test_labels_need_not_start_at_zero():
    assert m.matthews([5, 5, 9, 9], [5, 5, 9, 9]).value == 1.0
    assert m.f1([1, 1, 1], [1, 1, 1]).value == 1.0
    assert m.f1([0, 0, 0], [0, 0, 0]).value == 0.0
    assert m.matthews([0, 1], [1, 0]).value == -1.0


# ---- undefined scores


def test_one_class_scores_zero():
    ones, mixed = np.ones(6, dtype=int), np.array([0, 1, 0, 1, 0, 1])
    for y, p in ((ones, ones), (ones, mixed), (mixed, ones)):
        score = m.matthews(y, p)
        assert (score.value, score.low, score.high) == (0.0, 0.0, 0.0)
    assert m.f1(1 - ones, 1 - ones).value == 0.0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("metric", [m.pearson, m.spearman])
def test_correlation_with_a_constant_is_undefined(metric):
    for y, p in (([0.1, 0.2, 0.3], [0.7] * 3), ([0.1] * 3, [1, 2, 3]), ([1.0], [1.0]), ([], [])):
        score = metric(y, p)
        assert not score.defined
        assert math.isnan(score.value)
        assert math.isnan(score.low)
        assert str(score) == f"{metric.__name__} undefined (n = {len(y)})"
        assert json.loads(json.dumps(score.to_json(), allow_nan=False))["value"] is None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", m.METRICS)
def test_no_examples(name):
    score = m.evaluate([name], [], [])[name]
    assert math.isnan(score.value)
    assert score.n == 0
    assert math.isnan(m.paired_difference(name, [], [], []).value)


# ---- intervals


@pytest.mark.parametrize(
    ("right", "n"), [(0, 1), (1, 1), (279, 408), (0, 50), (50, 50), (4999, 5000)]
)
def test_wilson_equals_scipy(right, n):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0.0 <= wilson(right, n)[0] <= right / n <= wilson(right, n)[1] <= 1.0


@pytest.mark.parametrize("name", m.METRICS)
def test_interval_holds_the_value_narrows_with_n_and_repeats(name):
    widths = []
    for n in (100, 1600):
        y, p = examples(name, n)
        score = m.evaluate([name], y, p, seed=4)[name]
        assert score.name == name
        assert score.n == n
        assert -1 <= score.low < score.value < score.high <= 1
        assert score == m.evaluate([name], y, p, seed=4)[name]
        widths.append(score.high - score.low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.35)


def test_bootstrap_of_cells_is_the_bootstrap_of_examples():
    sklearn = pytest.importorskip("sklearn.metrics")
    y, p = classified(80, right=0.5)
    index = np.random.default_rng(9).integers(80, size=(2000, 80))
    for score, plain in (
        (m.f1(y, p), lambda i: 2 * (y[i] & p[i]).sum() / (y[i].sum() + p[i].sum())),
        (m.matthews(y, p), lambda i: sklearn.matthews_corrcoef(y[i], p[i])),
    ):
        expected = np.percentile([plain(i) for i in index], [2.5, 97.5])
        assert (score.low, score.high) == pytest.approx(tuple(expected), abs=0.02)


def test_bootstrap_of_ranks_ranks_each_resample():
    stats = pytest.importorskip("scipy.stats")
    x, y = (v.astype(float) for v in classified(60, classes=6, right=0.5))
    index = np.random.default_rng(9).integers(60, size=(2000, 60))
    expected = np.percentile([stats.spearmanr(x[i], y[i])[0] for i in index], [2.5, 97.5])
    score = m.spearman(x, y)
    assert (score.low, score.high) == pytest.approx(tuple(expected), abs=0.03)


@pytest.mark.parametrize("name", ["f1", "matthews"])
def test_intervals_cover_the_truth(name):
    y, p = classified(200_000, right=0.6, seed=1)
    truth = m.evaluate([name], y, p)[name].value
    scores = [m.evaluate([name], *classified(300, right=0.6, seed=s))[name] for s in range(300)]
    covered = sum(s.low <= truth <= s.high for s in scores) / len(scores)
    assert 0.91 <= covered <= 0.985


# ---- two models on the same examples


@pytest.mark.parametrize("name", m.METRICS)
def test_difference_is_that_of_the_scores_and_changes_sign(name):
    y, a = examples(name, 500, noise=0.1)
    _, worse = examples(name, 500, noise=0.8)
    b = np.where(np.arange(500) % 2, worse, a)
    forth, back = m.paired_difference(name, y, a, b), m.paired_difference(name, y, b, a)
    one, other = m.evaluate([name], y, a)[name], m.evaluate([name], y, b)[name]
    assert forth.value == pytest.approx(one.value - other.value)
    assert forth.n == 500
    assert 0 < forth.low < forth.value < forth.high
    assert back.value == pytest.approx(-forth.value)
    assert back.high < 0
    # Pairing pays: the difference is known better than two separate scores would tell.
    assert forth.high - forth.low < (one.high - one.low) + (other.high - other.low)


@pytest.mark.parametrize("name", m.METRICS)
def test_equal_models_differ_by_nothing(name):
    y, a = examples(name, 300, noise=0.2)
    score = m.paired_difference(name, y, a, a)
    assert score.value == 0.0
    assert score.low <= 0.0 <= score.high
    if name == "accuracy":
        assert 0.0 < score.high < 0.02
        assert score.low == pytest.approx(-score.high)


def test_newcombe_covers_the_truth():
    random, covered = np.random.default_rng(0), 0
    for _ in range(2000):
        hard = random.random(100) < 0.25
        first = ~hard | (random.random(100) < 0.5)
        second = ~hard & (random.random(100) < 0.9)
        _, low, high = newcombe(first, second)
        covered += low <= (0.75 + 0.125) - 0.75 * 0.9 <= high
    assert 0.93 <= covered / 2000 <= 0.975


# ---- the floor


def test_floor_by_hand():
    floor = m.majority_floor([1, 1, 0], [1, 1, 1, 0], ["accuracy", "f1", "matthews"])
    assert list(floor) == ["accuracy", "f1", "matthews"]
    assert [s.value for s in floor.values()] == pytest.approx([0.75, 6 / 7, 0.0])
    # equally frequent: the first class
    assert m.majority_floor([1, 0], [0, 1, 1], ["accuracy"])["accuracy"].value == pytest.approx(
        1 / 3
    )
    assert m.majority_floor([1, 0], [0, 1, 1], ["f1"], positive=0)["f1"].value == 0.5


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no data sets at {SHARED}")
def test_floor_of_mrpc():
    task = load_task(SHARED / "mrpc")
    floor = m.majority_floor(
        task.train.labels, task.dev.labels, task.metrics, positive=task.positive
    )
    assert floor["accuracy"].value == pytest.approx(279 / 408)
    assert floor["f1"].value == pytest.approx(2 * 279 / (279 + 408))
    assert str(floor["accuracy"]) == "accuracy 0.684 [0.637, 0.727] (n = 408)"
    assert str(floor["f1"]).startswith("f1 0.812 [")


def test_floor_of_regression_is_undefined():
    train, dev = np.array([1, 2, 5], dtype=np.float32), np.array([0.5, 3], dtype=np.float32)
    floor = m.majority_floor(train, dev, ("pearson", "spearman"))
    assert [str(s) for s in floor.values()] == [
        "pearson undefined (n = 2)",
        "spearman undefined (n = 2)",
    ]


# ---- bad input


def test_bad_input():
    with pytest.raises(
        ValueError, match=r"accuracy: predictions has shape \(3,\), expected \(2,\)"
    ):
        m.accuracy([0, 1], [0, 1, 1])
    with pytest.raises(ValueError, match=r"f1: labels has shape \(1, 2\), expected \(n,\)"):
        m.f1([[0, 1]], [[0, 1]])
    with pytest.raises(TypeError, match="matthews: predictions is float64, expected class indices"):
        m.matthews([0, 1], [0.2, 0.8])
    with pytest.raises(TypeError, match="pearson: labels is <U1, expected numbers"):
        m.pearson(["a", "b"], [1, 2])
    with pytest.raises(ValueError, match=r"spearman: predictions\[1\] is nan, expected a finite"):
        m.spearman([1, 2], [1, math.nan])
    with pytest.raises(ValueError, match="evaluate: metric is 'bleu', expected one of accuracy"):
        m.evaluate(["bleu"], [0], [0])
    with pytest.raises(ValueError, match="paired_difference: metric is 'bleu'"):
        m.paired_difference("bleu", [0], [0], [0])
    with pytest.raises(ValueError, match="positive is None"):
        m.evaluate(["f1"], [0], [0], positive=None)
    with pytest.raises(ValueError, match="train_labels is empty"):
        m.majority_floor([], [0], ["accuracy"])


def test_inputs_are_left_alone():
    y, p = classified(50)
    before = y.copy(), p.copy()
    m.evaluate(m.METRICS, y, p)
    assert (y == before[0]).all()
    assert (p == before[1]).all()


def test_docstring_examples():
    result = doctest.testmod(m)
    assert result.failed == 0 < result.attempted
