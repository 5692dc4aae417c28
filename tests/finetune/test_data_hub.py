"""Data sets from the hub, and what is said when it cannot be reached."""

from __future__ import annotations

import sys
import types

import pytest

from spatile.finetune.data import load_task

from .tables import failure


class Split:
    def __init__(self, columns, names=None):
        self.columns = columns
        self.column_names = list(columns)
        self.features = {c: types.SimpleNamespace() for c in columns}
        if names is not None:
            self.features["label"] = types.SimpleNamespace(names=names)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, column):
        return self.columns[column]


@pytest.fixture
def hub(monkeypatch):
    """Stands in for ``datasets``; the calls that reach it are recorded."""

    def install(splits):
        calls = []

        def load_dataset(*args):
            calls.append(args)
            if isinstance(splits, Exception):
                raise splits
            return splits

        fake = types.ModuleType("datasets")
        fake.load_dataset = load_dataset
        monkeypatch.setitem(sys.modules, "datasets", fake)
        return calls

    return install


def test_hub_splits_with_class_names(hub):
    names = ["unacceptable", "acceptable"]
    calls = hub(
        {
            "train": Split({"sentence": ["a", "b", "c"], "label": [1, 0, 0]}, names),
            "validation": Split({"sentence": ["b", "d"], "label": [0, 1]}, names),
            "test": Split({"sentence": ["e"], "label": [-1]}, names),
        }
    )
    t = load_task("glue/cola", test=True)
    assert calls == [("nyu-mll/glue", "cola")]
    assert (t.name, t.labels, t.metrics) == ("cola", tuple(names), ("matthews", "accuracy"))
    assert t.train.texts == ["a", "c"]
    assert t.train.rows.tolist() == [0, 2]
    assert t.test.labels.tolist() == [-1]
    with pytest.raises(ValueError, match="dev_ids is given"):
        load_task("glue/cola", dev_ids="ids.tsv")


def test_hub_configuration_and_regression(hub):
    both = {"text": ["a", "b"], "score": [0.5, 1.5]}
    calls = hub({"train": Split(both), "dev": Split({"text": ["c"], "score": [2.0]})})
    t = load_task("someone/ratings:en")
    assert calls == [("someone/ratings", "en")]
    assert t.kind == "regression"
    assert t.dev.labels.tolist() == [2.0]


def test_hub_without_dev_split(hub):
    hub({"train": Split({"text": ["a"], "label": [0]})})
    message = failure(ValueError, "someone/ratings")
    assert "'train'" in message
    assert "a dev split" in message


def test_hub_out_of_reach_tells_how_to_give_a_folder(hub):
    hub(ConnectionError("no route to host"))
    message = failure(RuntimeError, "mrpc")
    assert "no route to host" in message
    assert "'mrpc' is no folder here" in message
    assert "a folder with train and dev files" in message


def test_hub_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = failure(ModuleNotFoundError, "mrpc")
    assert "pip install datasets" in message
    assert "a folder with train and dev files" in message


@pytest.mark.parametrize("name", ["mrpc", "glue/mrpc", "glue:mrpc", "nyu-mll/glue:mrpc"])
def test_a_glue_task_is_the_same_however_it_is_spelled(hub, name):
    rows = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [0, 1]}
    other = {"sentence1": ["e", "f"], "sentence2": ["g", "h"], "label": [1, 0]}
    names = ["not_equivalent", "equivalent"]
    calls = hub({"train": Split(rows, names), "validation": Split(other, names)})
    t = load_task(name)
    assert calls == [("nyu-mll/glue", "mrpc")]
    assert (t.name, t.metrics) == ("mrpc", ("f1", "accuracy"))


def test_class_names_belong_to_their_column(hub):
    rows = {"text": ["a", "b"], "label": [0, 1], "stars": [3, 4]}
    dev = {"text": ["c", "d"], "label": [1, 0], "stars": [4, 3]}
    hub({"train": Split(rows, ["bad", "good"]), "dev": Split(dev, ["bad", "good"])})
    assert load_task("someone/reviews").labels == ("bad", "good")
    assert load_task("someone/reviews", label="stars").labels == ("3", "4")
