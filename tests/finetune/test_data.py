"""Loading of data sets: GLUE's layouts, rows in both train and dev, every kind of bad input."""

from __future__ import annotations

import doctest
import hashlib
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from spatile.finetune.data import Examples, load_task, task

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no data sets at {SHARED}")

TRAIN = "sentence\tlabel\nfine\t1\nbad\t0\nso so\t1\n"
DEV = "sentence\tlabel\ngood\t1\nawful\t0\n"
SCORES = "text\tscore\nz\t1\n"


@pytest.fixture
def folder(tmp_path):
    """Writes files (name with its suffix → content) and returns their folder."""

    def write(**files):
        for name, content in files.items():
            stem, _, suffix = name.rpartition("_")
            data = content if isinstance(content, bytes) else content.encode()
            (tmp_path / f"{stem}.{suffix}").write_bytes(data)
        return tmp_path

    return write


def failure(error, *args, **kwargs):
    with pytest.raises(error) as caught:
        load_task(*args, **kwargs)
    message = str(caught.value)
    assert message.startswith("load_task: ")
    assert "expected" in message
    assert "\n" not in message
    return message


# ---- real data


@shared_data
@pytest.mark.parametrize(
    ("name", "train", "positive", "dev", "dev_positive", "metrics"),
    [
        ("mrpc", 3668, 2474, 408, 279, ("accuracy", "f1")),
        ("sst2", 67349, 37569, 872, 444, ("accuracy", "f1")),
        ("wnli", 635, 312, 71, 31, ("accuracy", "f1")),
    ],
)
def test_glue_counts(name, train, positive, dev, dev_positive, metrics):
    t = load_task(SHARED / name)
    assert (t.name, t.kind, t.labels, t.positive) == (name, "classification", ("0", "1"), 1)
    assert t.metrics == metrics
    assert (len(t.train), int(t.train.labels.sum())) == (train, positive)
    assert (len(t.dev), int(t.dev.labels.sum())) == (dev, dev_positive)
    assert t.test is None
    assert t.notes == ()


@shared_data
def test_cola_is_headerless_and_its_repeated_sentences_leave_train():
    t = load_task(SHARED / "cola", test=True)
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
    message = failure(ValueError, SHARED / "cola", overlap="error")
    assert "16 of 8551 rows" in message
    assert "dev_ids" not in message


@shared_data
def test_mrpc_splits_and_test():
    t = load_task(SHARED / "mrpc", test=True)
    assert t.columns == ("#1 String", "#2 String", "Quality")
    assert t.is_pair
    assert (len(t.test), int(t.test.labels.sum())) == (1725, 1147)
    assert t.dev.pairs[0].startswith('" The foodservice pie business')


@shared_data
def test_msr_train_file_with_dev_ids_gives_glue_splits(tmp_path):
    glue = load_task(SHARED / "mrpc")
    shutil.copy(SHARED / "mrpc" / "msr_paraphrase_train.txt", tmp_path)
    assert "dev_ids" in failure(FileNotFoundError, tmp_path)
    for t in (
        load_task(tmp_path, dev_ids=SHARED / "mrpc" / "dev_ids.tsv"),
        (shutil.copy(SHARED / "mrpc" / "dev_ids.tsv", tmp_path), load_task(tmp_path))[1],
    ):
        for ours, theirs in ((t.train, glue.train), (t.dev, glue.dev)):
            assert ours.texts == theirs.texts
            assert ours.pairs == theirs.pairs
            np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert any("408 rows named by" in note for note in t.notes)


@shared_data
def test_msr_train_file_with_glue_dev_stops(tmp_path):
    shutil.copy(SHARED / "mrpc" / "msr_paraphrase_train.txt", tmp_path)
    shutil.copy(SHARED / "mrpc" / "glue_dev.tsv", tmp_path / "dev.tsv")
    message = failure(ValueError, tmp_path)
    assert "408 of 4076 rows" in message
    assert "line 11 = dev line 2, line 20 = dev line 3, line 27 = dev line 4, …" in message
    assert "dev_ids" in message
    t = load_task(tmp_path, dev_ids=SHARED / "mrpc" / "dev_ids.tsv")
    assert (len(t.train), len(t.dev)) == (3668, 408)


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


# ---- layouts


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


# ---- subsets


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


# ---- rows in both splits


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


# ---- bad input


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


# ---- the hub


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
