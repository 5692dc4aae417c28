"""Loading of GLUE's data sets and of the shipped pairs: rows, classes, splits."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from spatile.finetune.data import load_task, task

from .tables import failure

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("name", "train", "positive", "dev", "dev_positive", "metrics"),
    [
        ("mrpc", 3668, 2474, 408, 279, ("f1", "accuracy")),
        ("sst2", 67349, 37569, 872, 444, ("accuracy", "f1")),
        ("wnli", 635, 312, 71, 31, ("accuracy", "f1")),
    ],
)
def test_glue_counts(shared_data, name, train, positive, dev, dev_positive, metrics):
    t = load_task(shared_data / name)
    assert (t.name, t.kind, t.labels, t.positive) == (name, "classification", ("0", "1"), 1)
    assert t.metrics == metrics
    assert (len(t.train), int(t.train.labels.sum())) == (train, positive)
    assert (len(t.dev), int(t.dev.labels.sum())) == (dev, dev_positive)
    assert t.test is None
    assert t.notes == ()


def test_cola_is_headerless_and_its_repeated_sentences_leave_train(shared_data):
    t = load_task(shared_data / "cola", test=True)
    assert t.metrics == ("matthews", "accuracy")
    assert t.columns == ("sentence", "label")
    assert (len(t.dev), int(t.dev.labels.sum())) == (1043, 721)
    assert len(t.train) == 8551 - 16
    assert len(t.notes) == 1
    assert t.notes[0].startswith("16 rows taken out")
    assert t.dev.texts[0] == "The sailors rode the breeze clear of the rocks."
    assert t.dev.rows[0] == 1
    assert t.dev.rows[-1] == 1043
    assert not set(t.train.texts) & set(t.dev.texts)
    assert len(t.test) == 1063
    assert set(t.test.labels) == {task.UNLABELLED}
    message = failure(ValueError, shared_data / "cola", overlap="error")
    assert "16 of 8551 rows" in message
    assert "dev_ids" not in message


def test_mrpc_splits_and_test(shared_data):
    t = load_task(shared_data / "mrpc", test=True)
    assert t.columns == ("#1 String", "#2 String", "Quality")
    assert t.is_pair
    assert (len(t.test), int(t.test.labels.sum())) == (1725, 1147)
    assert t.dev.pairs[0].startswith('" The foodservice pie business')


def test_msr_train_file_with_dev_ids_gives_glue_splits(shared_data, tmp_path):
    glue = load_task(shared_data / "mrpc")
    shutil.copy(shared_data / "mrpc" / "msr_paraphrase_train.txt", tmp_path)
    assert "dev_ids" in failure(FileNotFoundError, tmp_path)
    for t in (
        load_task(tmp_path, dev_ids=shared_data / "mrpc" / "dev_ids.tsv"),
        (shutil.copy(shared_data / "mrpc" / "dev_ids.tsv", tmp_path), load_task(tmp_path))[1],
    ):
        for ours, theirs in ((t.train, glue.train), (t.dev, glue.dev)):
            assert ours.texts == theirs.texts
            assert ours.pairs == theirs.pairs
            np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert any("408 rows named by" in note for note in t.notes)


def test_msr_train_file_with_glue_dev_stops(shared_data, tmp_path):
    shutil.copy(shared_data / "mrpc" / "msr_paraphrase_train.txt", tmp_path)
    shutil.copy(shared_data / "mrpc" / "glue_dev.tsv", tmp_path / "dev.tsv")
    message = failure(ValueError, tmp_path)
    assert "408 of 4076 rows" in message
    assert "line 11 = dev line 2, line 20 = dev line 3, line 27 = dev line 4, …" in message
    assert "dev_ids" in message
    t = load_task(tmp_path, dev_ids=shared_data / "mrpc" / "dev_ids.tsv")
    assert (len(t.train), len(t.dev)) == (3668, 408)
    assert t.metrics == ("f1", "accuracy")  # whatever the folder is called


def test_shipped_pairs():
    t = load_task(ROOT / "data" / "qa")
    assert t.labels == ("entailment", "not_entailment")
    assert t.positive == 0
    assert t.metrics == ("accuracy", "f1")
    assert t.outputs == 2
    assert t.columns == ("question", "sentence", "label")
    assert np.bincount(t.train.labels).tolist() == [2000, 2000]
    assert np.bincount(t.dev.labels).tolist() == [500, 500]
    assert t.train.texts[1] == 'Who designed the "50"?'


def test_shipped_files_are_those_of_their_readme():
    readme = (ROOT / "data" / "qa" / "README.md").read_text(encoding="utf-8")
    for name in ("train.tsv", "dev.tsv"):
        digest = hashlib.sha256((ROOT / "data" / "qa" / name).read_bytes()).hexdigest()
        assert f"`{digest}`" in readme
    assert "CC BY-SA 4.0" in readme
