"""The splits of a data set in a folder, found by the usual file names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from .tables import JSON_SUFFIXES, Table, listing, read_lines, read_table

__all__ = ["ID_COLUMNS", "read_folder"]

_SUFFIXES = (".tsv", *JSON_SUFFIXES)
_TRAIN = ("train", "glue_train")
_DEV = ("dev", "validation", "valid", "val", "dev_matched", "validation_matched", "glue_dev")
_TEST = ("test", "test_matched")
_MSR_TRAIN, _MSR_TEST, _DEV_IDS = (
    "msr_paraphrase_train.txt",
    "msr_paraphrase_test.txt",
    "dev_ids.tsv",
)
ID_COLUMNS = ("#1 ID", "#2 ID")


def read_folder(folder: Path, dev_ids: Path | None, test: bool) -> dict[str, Table]:
    """Tables by split name: "train", "dev" and, if ``test``, "test".

    Without a dev file, GLUE's ``dev_ids.tsv`` (given, or beside MSR's own train file) says which
    rows of train are the dev split.
    """
    train_path = _find(folder, _TRAIN, _MSR_TRAIN)
    if train_path is None:
        raise _missing(folder, "train", (*_TRAIN, _MSR_TRAIN))
    dev_path = _find(folder, _DEV)
    if dev_ids is None and train_path.name == _MSR_TRAIN and (folder / _DEV_IDS).is_file():
        dev_ids = folder / _DEV_IDS
    if dev_path is None and dev_ids is None:
        raise _missing(folder, "dev", _DEV)

    splits = {"train": read_table(train_path)}
    if dev_path is not None:
        splits["dev"] = read_table(dev_path)
    if dev_ids is not None:
        _split_by_ids(splits, dev_ids)
    if test:
        test_path = _find(folder, _TEST, _MSR_TEST)
        if test_path is None:
            raise _missing(folder, "test", (*_TEST, _MSR_TEST))
        splits["test"] = read_table(test_path)
    return splits


def _find(folder: Path, stems: tuple[str, ...], *whole_names: str) -> Path | None:
    names = [stem + suffix for stem in stems for suffix in _SUFFIXES]
    return next((folder / n for n in (*names, *whole_names) if (folder / n).is_file()), None)


def _missing(folder: Path, split: str, stems: tuple[str, ...]) -> FileNotFoundError:
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    names = ", ".join(stem if "." in stem else f"{stem}.*" for stem in stems)
    hint = f", or GLUE's {_DEV_IDS} as dev_ids" if split == "dev" else ""
    return FileNotFoundError(
        f"load_task: {folder} holds {listing(files)}, expected a {split} file: one of {names} "
        f"with the ending {', '.join(_SUFFIXES)}{hint}"
    )


def _split_by_ids(splits: dict[str, Table], path: Path) -> None:
    """Take the rows named by ``path`` out of train; they are the dev split unless there is one."""
    ids = _read_ids(path)
    train = splits["train"]
    for name in ID_COLUMNS:
        if name not in train.columns:
            raise ValueError(
                f"load_task: {train.source} has the columns {listing(list(train.columns))}, "
                f"expected {name!r}, which {path} refers to"
            )
    pairs = zip(*(train.columns[name] for name in ID_COLUMNS), strict=True)
    named = [(str(first), str(second)) for first, second in pairs]
    in_dev = np.array([pair in ids for pair in named])
    if "dev" not in splits:
        absent = set(ids) - set(named)
        if absent:
            first, second = min(absent, key=lambda pair: ids[pair])
            raise ValueError(
                f"load_task: {path} names {len(absent)} of its {len(ids)} rows that "
                f"{train.source} lacks (line {ids[first, second]}: {first}, {second}), "
                "expected the train file that it was made for"
            )
        splits["dev"] = train.select(in_dev)
    note = f"{int(in_dev.sum())} rows named by {path} taken out of {train.source}"
    splits["train"] = replace(train.select(~in_dev), notes=(note,))


def _read_ids(path: Path) -> dict[tuple[str, str], int]:
    """Pairs of ids with their line, from a file of two columns without a header."""
    if not path.is_file():
        raise FileNotFoundError(f"load_task: dev_ids is {path}, expected a file")
    ids: dict[tuple[str, str], int] = {}
    for number, line in enumerate(read_lines(path, str(path)), start=1):
        cells = line.split("\t")
        if len(cells) != 2:
            raise ValueError(
                f"load_task: {path} line {number} has {len(cells)} columns, expected 2: "
                "the two ids of a row, separated by a tab"
            )
        ids.setdefault((cells[0], cells[1]), number)
    return ids
