"""Layouts of data sets: tables and JSON lines, their columns, and their labels' order."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys

import numpy as np
import pytest

from spatile.finetune.data import load_task, task

from .tables import DEV, TRAIN, failure


def test_no_quoting_and_only_newlines_end_lines(folder):
    odd = 'he said "a\u2028b\x85c\x0bd\re'
    t = load_task(folder(train_tsv=f'sentence\tlabel\n{odd}\t1\n"\t0\n', dev_tsv=DEV))
    assert t.train.texts == [odd, '"']


def test_byte_order_mark_and_windows_line_ends(folder):
    windows = b"\xef\xbb\xbf" + TRAIN.replace("\n", "\r\n").encode()
    t = load_task(folder(train_tsv=windows, dev_tsv=DEV.rstrip("\n")))
    assert t.columns == ("sentence", "label")
    assert t.labels == ("0", "1")
    assert t.train.rows.tolist() == [2, 3, 4]
    assert len(t.dev) == 2


@pytest.mark.parametrize(
    ("header", "texts", "label"),
    [
        ("sentence\tlabel", ("sentence",), "label"),
        ("text\tlabel", ("text",), "label"),
        ("index\tsentence1\tsentence2\tlabel", ("sentence1", "sentence2"), "label"),
        ("index\tquestion\tsentence\tlabel", ("question", "sentence"), "label"),
        ("premise\thypothesis\tlabel", ("premise", "hypothesis"), "label"),
        (
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
            ("question1", "question2"),
            "is_duplicate",
        ),
        (
            "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
            ("#1 String", "#2 String"),
            "Quality",
        ),
    ],
)
def test_usual_column_names(folder, header, texts, label):
    def rows(*labels):
        names = header.split("\t")
        lines = [
            "\t".join(c if n == label else f"{n} {labels} {i}" for n in names)
            for i, c in enumerate(labels)
        ]
        return "\n".join([header, *lines]) + "\n"

    t = load_task(folder(train_tsv=rows("0", "1", "1"), dev_tsv=rows("1", "0")))
    assert t.columns == (*texts, label)
    assert t.is_pair == (len(texts) == 2)
    assert t.train.labels.tolist() == [0, 1, 1]
    assert t.train.labels.dtype == np.int64


def test_json_lines_and_explicit_columns(folder):
    lines = [{"q": f"question {i}", "d": "ü \u2028", "stars": i % 3} for i in range(6)]
    train = "\n".join(map(json.dumps, lines)) + "\n\n"
    dev = json.dumps({"stars": 2, "d": "x", "q": "y"})
    path = folder(train_jsonl=train, validation_jsonl=dev)
    t = load_task(path, text="q", pair="d", label="stars", name="stars")
    assert (t.name, t.labels, t.positive) == ("stars", ("0", "1", "2"), None)
    assert t.metrics == ("accuracy",)
    assert t.train.pairs[0] == "ü \u2028"
    assert t.dev.labels.tolist() == [2]
    single = load_task(path, text="q", label="stars")
    assert not single.is_pair


def test_json_numbers_and_booleans_are_the_same_labels(folder):
    train = '{"text": "a", "label": 1}\n{"text": "b", "label": false}\n{"text": "c", "label": 1.0}'
    t = load_task(folder(train_jsonl=train, dev_jsonl='{"text": "d", "label": "0"}'))
    assert t.labels == ("0", "1")
    assert t.train.labels.tolist() == [1, 0, 1]


def test_regression_by_column_name_and_by_fractions(folder):
    header = "index\tsentence1\tsentence2\t"
    train = "0\ta\tb\t5.000\n1\tc\td\t2\n"
    path = folder(train_tsv=header + "score\n" + train, dev_tsv=header + "score\n0\te\tf\t1.5\n")
    t = load_task(path)
    assert (t.kind, t.labels, t.positive, t.outputs) == ("regression", (), None, 1)
    assert t.metrics == ("pearson", "spearman")
    assert t.train.labels.dtype == np.float32
    assert t.train.labels.tolist() == [5.0, 2.0]
    path = folder(
        train_tsv=header + "label\n" + train + "2\tg\th\t0.25\n",
        dev_tsv=header + "label\n0\te\tf\t1\n",
    )
    assert load_task(path).kind == "regression"
    assert "'0.25'" in failure(ValueError, path, kind="classification", labels=["5.000", "2", "1"])


def test_whole_numbers_are_ordered_by_value(folder):
    rows = "".join(f"text {i}\t{i}\n" for i in (10, 9, 2))
    t = load_task(folder(train_tsv="text\tlabel\n" + rows, dev_tsv="text\tlabel\nx\t9\n"))
    assert t.labels == ("2", "9", "10")
    assert t.dev.labels.tolist() == [1]


def test_label_order_can_be_given(folder):
    path = folder(train_tsv=TRAIN, dev_tsv=DEV)
    t = load_task(path, labels=["1", "0"], positive="1")
    assert t.labels == ("1", "0")
    assert t.positive == 0
    assert t.train.labels.tolist() == [0, 1, 0]
    assert "'1'" in failure(ValueError, path, labels=["0", "2"])
    assert "positive is 'yes'" in failure(ValueError, path, positive="yes")


def test_glue_order_of_three_way_entailment(folder):
    names = ("neutral", "contradiction", "entailment")
    rows = "".join(f"p{i}\th\t{n}\n" for i, n in enumerate(names))
    header = "sentence1\tsentence2\tgold_label\n"
    t = load_task(folder(train_tsv=header + rows, dev_matched_tsv=header + "x\th\tneutral\n"))
    assert t.labels == ("entailment", "neutral", "contradiction")


# ---- the module


def test_loading_needs_neither_torch_nor_transformers(folder):
    path = folder(train_tsv=TRAIN, dev_tsv=DEV)
    code = (
        "import sys; from spatile.finetune import data, metrics; data.load_task(sys.argv[1]); "
        "print(sorted({'torch', 'transformers', 'datasets', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_docstring_examples():
    assert doctest.testmod(task).failed == 0 < doctest.testmod(task).attempted


def test_broken_rows_of_glues_own_pairs_of_questions_are_left_out(folder):
    head = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    train = head + "1\t2\t3\tWhy?\tHow?\t0\n2\t3\t4\tbroken\n3\t4\t5\tWho?\tWhose?\t1\n"
    dev = head + "9\t2\t3\tWhen?\tWhere?\t0\n9\t2\t3\tWhat?\tWhich?\t1\n"
    t = load_task(folder(train_tsv=train, dev_tsv=dev))
    assert t.train.rows.tolist() == [2, 4]
    assert t.train.pairs == ["How?", "Whose?"]
    assert len(t.notes) == 1
    assert "1 rows of" in t.notes[0]
    message = failure(ValueError, folder(train_tsv=train.replace("qid1", "first"), dev_tsv=dev))
    assert "line 3 has 4 columns" in message
