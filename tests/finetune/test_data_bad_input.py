"""Data sets that cannot be loaded: the file, the line and what was expected there."""

from __future__ import annotations

import pytest

from spatile.finetune.data import load_task

from .tables import DEV, TRAIN, failure

SCORES = "text\tscore\nz\t1\n"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"train_tsv": "sentence\tkind\nx\t1\n"}, ["train.tsv", "'sentence', 'kind'", "'label'"]),
        ({"train_tsv": "body\tlabel\nx\t1\n"}, ["train.tsv", "'body', 'label'", "'sentence'"]),
        ({"dev_tsv": "sentence\ty\nx\t1\n"}, ["dev.tsv", "'sentence', 'y'", "expected 'label'"]),
        ({"dev_tsv": DEV + "x\tmaybe\n"}, ["dev.tsv line 4", "'label'", "'maybe'", "'0', '1'"]),
        ({"train_tsv": TRAIN + "x\n"}, ["train.tsv line 5", "1 columns", "expected 2"]),
        ({"train_tsv": TRAIN + "\nx\t1\n"}, ["train.tsv line 5", "1 columns", "expected 2"]),
        ({"dev_tsv": DEV + "x\ty\t1\n"}, ["dev.tsv line 4", "3 columns", "expected 2"]),
        ({"train_tsv": ""}, ["train.tsv is empty"]),
        ({"train_tsv": "\ufeff\n\n"}, ["train.tsv is empty"]),
        ({"dev_tsv": "sentence\tlabel\n"}, ["dev.tsv has a header and no rows"]),
        ({"train_tsv": "text\ttext\n1\t2\n"}, ["train.tsv line 1", "'text' twice"]),
        ({"train_tsv": TRAIN.encode() + b"caf\xe9\t1\n"}, ["train.tsv line 5", "0xe9", "UTF-8"]),
        ({"train_tsv": TRAIN.encode("utf-16")}, ["train.tsv line 1", "0xff", "UTF-8"]),
        ({"train_tsv": "sentence\tlabel\na\t1\nb\t1\n"}, ["train.tsv", "'1' in all 2 rows"]),
        (
            {"train_tsv": "text\tscore\na\t1\nb\tmany\n", "dev_tsv": SCORES},
            ["line 3", "'score'", "'many'", "number"],
        ),
        (
            {"train_tsv": "text\tscore\na\t1\nb\tnan\n", "dev_tsv": SCORES},
            ["line 3", "'nan'", "a number"],
        ),
        (
            {"train_tsv": "text\tscore\na\t1\nb\t1e39\n", "dev_tsv": SCORES},
            ["line 3", "'1e39'", "a number"],
        ),
        (
            {"train_tsv": "text\tscore\na\t1\nb\t1.0\n", "dev_tsv": SCORES},
            ["'score' is 1.0 in all 2 rows"],
        ),
    ],
)
def test_bad_tables(folder, files, found):
    default = {"train_tsv": TRAIN, "dev_tsv": DEV}
    message = failure(ValueError, folder(**default | files))
    for part in found:
        assert part in message


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"text": "b", "label": 1', ["line 2", "not JSON"]),
        ("[1]", ["line 2", "a list", "one JSON object per line"]),
        ("[" * 100_000, ["line 2", "not JSON"]),
        ('{"text": "b"}', ["line 2", "'label'", "missing"]),
        ('{"label": 1}', ["line 2", "'text'", "missing", "expected text"]),
        ('{"text": null, "label": 1}', ["line 2", "'text'", "null"]),
        ('{"text": 5, "label": 1}', ["line 2", "'text'", "a number"]),
        ('{"text": "b", "label": [1]}', ["line 2", "'label'", "a list"]),
        ('{"text": "\\ud800", "label": 1}', ["line 2", "'text'", "U+D800"]),
        ('{"text": "b", "label": 0.5}', ["dev.jsonl line 1", "'x'", "expected a number"]),
    ],
)
def test_bad_json_lines(folder, line, found):
    good = '{"text": "a", "label": 0}\n'
    path = folder(train_jsonl=good + line, dev_jsonl='{"text": "z", "label": "x"}')
    message = failure(ValueError, path)
    for part in found:
        assert part in message


def test_missing_files_and_folders(folder, tmp_path):
    path = folder(notes_md="x")
    assert "'notes.md'" in failure(FileNotFoundError, path)
    folder(train_tsv=TRAIN)
    message = failure(FileNotFoundError, path)
    assert "a dev file" in message
    assert "'train.tsv'" in message
    folder(dev_tsv=DEV)
    assert "a test file" in failure(FileNotFoundError, path, test=True)
    assert "does not exist" in failure(FileNotFoundError, tmp_path / "absent")
    assert "does not exist" in failure(FileNotFoundError, "./absent")
    assert "is a file" in failure(NotADirectoryError, tmp_path / "dev.tsv")


def test_bad_arguments(folder):
    path = folder(train_tsv=TRAIN, dev_tsv=DEV)
    message = failure(ValueError, path, text="body")
    assert "text is 'body'" in message
    assert "'sentence', 'label'" in message
    assert "label is 'stars'" in failure(ValueError, path, label="stars")
    assert "text too" in failure(ValueError, path, pair="sentence")
    assert "different columns" in failure(ValueError, path, text="label")
    assert "overlap is 'keep'" in failure(ValueError, path, overlap="keep")
    assert "kind is 'ranking'" in failure(ValueError, path, kind="ranking")
    assert "labels is" in failure(ValueError, path, labels=["1", "1"])


def test_bad_dev_ids(folder, tmp_path):
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    path = folder(
        train_tsv=header + "1\t10\t11\ta\tb\n0\t12\t13\tc\td\n1\t14\t15\te\tf\n",
        ids_tsv="14\t15\n",
        other_tsv="10\t11\n99\t98\n",
        wide_tsv="10\t11\t1\n",
    )
    t = load_task(path, dev_ids=path / "ids.tsv")
    assert t.train.texts == ["a", "c"]
    assert t.dev.texts == ["e"]
    assert t.dev.rows.tolist() == [4]
    message = failure(ValueError, path, dev_ids=path / "other.tsv")
    assert "names 1 of its 2 rows" in message
    assert "line 2: 99, 98" in message
    assert "line 1 has 3 columns" in failure(ValueError, path, dev_ids=path / "wide.tsv")
    assert "expected a file" in failure(FileNotFoundError, path, dev_ids=path / "absent.tsv")
    folder(train_tsv=TRAIN)
    assert "'#1 ID'" in failure(ValueError, path, dev_ids=path / "ids.tsv")
