"""From a folder or a hub name to a :class:`Task`: find, read, check, encode."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from .columns import (
    class_names,
    default_metrics,
    encode,
    find_columns,
    label_kind,
    positive_class,
    require_columns,
)
from .folder import ID_COLUMNS, read_folder
from .hub import glue_task, read_hub
from .tables import Table
from .task import Examples, Kind, Task

__all__ = ["load_task"]

Overlap = Literal["error", "drop"]


def load_task(
    path_or_name: str | os.PathLike[str],
    *,
    dev_ids: str | os.PathLike[str] | None = None,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    kind: Kind | None = None,
    labels: Sequence[str] | None = None,
    positive: str | None = None,
    overlap: Overlap | None = None,
    test: bool = False,
    train_rows: int | None = None,
    dev_rows: int | None = None,
    seed: int = 0,
    name: str | None = None,
) -> Task:
    """Load a data set for fine-tuning a classifier or a regressor.

    ``path_or_name`` is a folder with ``train`` and ``dev`` (or ``validation``, …) as ``.tsv``
    or ``.jsonl``, GLUE's own files among them (CoLA's without a header, MSR's paraphrase corpus
    with ``dev_ids.tsv``); or a name on the hub ("mrpc", "owner/name", "owner/name:config").
    TSV is split on tabs and newlines, without any quoting.

    - ``text``, ``pair``, ``label``: the columns, where they don't have one of the usual names.
    - ``kind``: by default regression where the label column is a score or has a fraction.
    - ``labels``: the classes in the order of the model's outputs. By default those of train:
      whole numbers by value, otherwise as GLUE orders them or by code point.
    - ``positive``: the class that F1 is about, by default the second of two.
    - ``dev_ids``: GLUE's list of the rows of MSR's train file that are the dev split.
    - ``overlap``: what to do about a train row whose texts, but for white space, are a dev
      row's: "error", the default, or "drop" it from train. CoLA's published split repeats 16
      sentences, so for its own files "drop" is the default; ``notes`` says how many.
    - ``test``: read the test split too; where it has no labels they are −1 (NaN in regression).
    - ``train_rows``, ``dev_rows``: a random subset of so many rows (:meth:`Examples.take`).
    - ``name``: by default the folder's name or the hub's.

    FileNotFoundError for a missing folder or file, ModuleNotFoundError or RuntimeError for a hub
    name that can't be had, ValueError for everything wrong in the data; each names the file,
    the line and the column, what is there and what was expected.

    >>> task = load_task("data/qa", train_rows=500)                # doctest: +SKIP
    >>> task.metrics, task.outputs, len(task.train)                # doctest: +SKIP
    (('accuracy', 'f1'), 2, 500)
    """
    if overlap not in (None, "error", "drop"):
        raise ValueError(f"load_task: overlap is {overlap!r}, expected 'error' or 'drop'")
    if kind not in (None, "classification", "regression"):
        raise ValueError(f"load_task: kind is {kind!r}, expected 'classification' or 'regression'")
    tables, default_name = _read(path_or_name, dev_ids, test)
    columns = find_columns(tables["train"], text, pair, label)
    for split, table in tables.items():
        names = columns if split != "test" else columns[:2]
        require_columns(table, [column for column in names if column is not None])

    kind = label_kind(tables["train"], columns[2]) if kind is None else kind
    classes = None if kind == "regression" else class_names(tables["train"], columns[2], labels)
    splits = {split: encode(table, columns, classes) for split, table in tables.items()}
    if kind == "regression":
        _check_varies(tables["train"], splits["train"], columns[2])
    notes = list(dict.fromkeys(note for table in tables.values() for note in table.notes))
    # GLUE's test files have no labels: nothing is scored on them, and SST-2's repeats train rows.
    for split in list(splits)[1:]:
        if columns[2] in tables[split].columns:
            notes += _separate(splits, tables, split, overlap)
    for split, count in (("train", train_rows), ("dev", dev_rows)):
        if count is not None:
            notes.append(f"{count} of {len(splits[split])} {split} rows used, seed {seed}")
            splits[split] = _subset(splits[split], count, f"{split}_rows", seed)

    name = default_name if name is None else name
    glue_name = "mrpc" if dev_ids is not None else name  # which has such a list alone
    glue_name = "cola" if tables["train"].layout == "cola" else glue_name
    return Task(
        name=name,
        kind=kind,
        labels=classes or (),
        positive=None if classes is None else positive_class(classes, positive),
        metrics=default_metrics(glue_name, kind, len(classes or ())),
        train=splits["train"],
        dev=splits["dev"],
        test=splits.get("test"),
        columns=tuple(column for column in columns if column is not None),
        sources=tuple(table.source for table in tables.values()),
        notes=tuple(notes),
    )


def _read(
    path_or_name: str | os.PathLike[str], dev_ids: str | os.PathLike[str] | None, test: bool
) -> tuple[dict[str, Table], str]:
    """The tables of a folder where there is one, else of a hub name; and the task's name."""
    given = os.fspath(path_or_name)
    path = Path(given).expanduser()
    if path.is_dir():
        ids = None if dev_ids is None else Path(dev_ids).expanduser()
        return read_folder(path, ids, test), path.resolve().name
    if path.exists():
        raise NotADirectoryError(
            f"load_task: {given} is a file, expected the folder that holds the train and dev files"
        )
    # What can only be a path is not worth a question to the hub.
    if (
        not isinstance(path_or_name, str)
        or given[:1] in ("", ".", "/", "~", "\\")
        or (given.count("/") > 1)
    ):
        raise FileNotFoundError(
            f"load_task: {given!r} does not exist, expected a folder with train and dev files"
        )
    if dev_ids is not None:
        raise ValueError(
            f"load_task: dev_ids is given with {given!r}, which is no folder here, expected it "
            "only with a folder that holds MSR's own train file"
        )
    return read_hub(given, test), glue_task(given) or given.rpartition("/")[2]


def _check_varies(table: Table, train: Examples, column: str) -> None:
    if np.ptp(train.labels) == 0:
        raise ValueError(
            f"load_task: {table.source}, column {column!r} is {train.labels[0]} in all "
            f"{len(train)} rows, expected at least two values"
        )


def _subset(examples: Examples, count: int, argument: str, seed: int) -> Examples:
    if not 1 <= count <= len(examples):
        raise ValueError(f"load_task: {argument} is {count}, expected 1 to {len(examples)}")
    return examples.take(count, seed)


def _key(examples: Examples, i: int) -> tuple[str, ...]:
    """The texts of a row, white space aside."""
    columns = [examples.texts] if examples.pairs is None else [examples.texts, examples.pairs]
    return tuple(" ".join(texts[i].split()) for texts in columns)


def _separate(
    splits: dict[str, Examples], tables: dict[str, Table], split: str, overlap: Overlap | None
) -> list[str]:
    """Stop at train rows that are also in ``split``, or take them out of train; returns notes."""
    train, held_out = splits["train"], splits[split]
    held: dict[tuple[str, ...], int] = {}
    for i in range(len(held_out)):
        held.setdefault(_key(held_out, i), i)
    shared = [(i, held[key]) for i in range(len(train)) if (key := _key(train, i)) in held]
    if not shared:
        return []
    train_table, held_table = tables["train"], tables[split]
    if overlap is None:
        overlap = "drop" if train_table.layout == "cola" else "error"
    if overlap == "error":
        unit = train_table.unit
        examples = ", ".join(
            f"{unit} {train.rows[i]} = {split} {unit} {held_out.rows[j]}" for i, j in shared[:3]
        )
        advice = (
            "If this is MSR's own train file, which holds GLUE's dev rows, give GLUE's "
            "dev_ids.tsv as dev_ids; otherwise "
            if set(ID_COLUMNS) <= set(train_table.columns)
            else ""
        )
        raise ValueError(
            f"load_task: {len(shared)} of {len(train)} rows of {train_table.source} are also in "
            f"{held_table.source} ({examples}{', …' if len(shared) > 3 else ''}), expected none: "
            f"scores on rows that were trained on say nothing. {advice}overlap='drop' takes these "
            f"rows out of train"
        )
    keep = np.ones(len(train), dtype=bool)
    keep[[i for i, _ in shared]] = False
    if not keep.any():
        raise ValueError(
            f"load_task: all {len(train)} rows of {train_table.source} are also in "
            f"{held_table.source}, expected train rows of its own"
        )
    splits["train"] = train.select(np.flatnonzero(keep))
    note = f"{len(shared)} rows taken out of {train_table.source}: their texts are also in "
    return [note + held_table.source]
