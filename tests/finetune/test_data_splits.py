"""Subsets of data sets, and rows that are in two splits."""

from __future__ import annotations

import numpy as np
import pytest

from spatile.finetune.data import Examples, load_task

from .tables import DEV, TRAIN, failure


def test_take_is_seeded_nested_and_in_file_order():
    e = Examples([str(i) for i in range(50)], None, np.arange(50), np.arange(50))
    small, large = e.take(10, seed=3), e.take(20, seed=3)
    assert small.texts == e.take(10, seed=3).texts != e.take(10, seed=4).texts
    assert set(small.texts) < set(large.texts)
    assert small.rows.tolist() == sorted(small.rows)
    assert small.labels.tolist() == small.rows.tolist()
    for n in (0, 51, -1):
        with pytest.raises(ValueError, match=f"take: n is {n}, expected 1 to 50"):
            e.take(n)
    with pytest.raises(TypeError, match="expected an integer"):
        e.take(2.0)


def test_shuffled_is_a_seeded_permutation():
    e = Examples(list("abcdef"), list("ABCDEF"), np.arange(6), np.arange(6))
    s = e.shuffled(1)
    assert s.texts == e.shuffled(1).texts
    assert s.texts != e.texts
    assert [t.upper() for t in s.texts] == s.pairs
    assert sorted(s.labels) == list(range(6))


def test_rows_asked_for(folder):
    path = folder(train_tsv=TRAIN, dev_tsv=DEV)
    t = load_task(path, train_rows=2, dev_rows=1, seed=5)
    assert (len(t.train), len(t.dev)) == (2, 1)
    assert any("2 of 3 train rows" in note for note in t.notes)
    assert "train_rows is 4, expected 1 to 3" in failure(ValueError, path, train_rows=4)


def test_row_in_both_splits_stops(folder):
    path = folder(train_tsv=TRAIN, dev_tsv=DEV + " so \u00a0 so\t0\n")
    message = failure(ValueError, path)
    assert "1 of 3 rows" in message
    assert "line 4 = dev line 4" in message
    assert "train.tsv" in message
    assert "dev.tsv" in message
    t = load_task(path, overlap="drop")
    assert t.train.texts == ["fine", "bad"]
    assert len(t.dev) == 3
    assert "1 rows" in t.notes[0]


def test_train_equal_to_dev_stops_even_when_dropping(folder):
    path = folder(train_tsv=TRAIN, dev_tsv=TRAIN)
    assert "all 3 rows" in failure(ValueError, path, overlap="drop")


def test_pairs_are_compared_as_pairs(folder):
    header = "sentence1\tsentence2\tlabel\n"
    path = folder(train_tsv=header + "a\tb\t0\nc\td\t1\n", dev_tsv=header + "a\td\t0\nc\tb\t1\n")
    assert len(load_task(path).train) == 2


def test_labelled_test_rows_are_kept_out_of_train_too(folder):
    path = folder(train_tsv=TRAIN, dev_tsv=DEV, test_tsv="sentence\tlabel\nfine\t1\n")
    assert load_task(path).test is None
    assert "test line 2" in failure(ValueError, path, test=True)
    folder(test_tsv="index\tsentence\n0\tfine\n")
    assert load_task(path, test=True).test.labels.tolist() == [-1]
