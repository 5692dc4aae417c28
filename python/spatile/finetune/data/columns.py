"""Which columns hold the texts and the label, and what the labels mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tables import Table, as_label, as_text, listing
from .task import UNLABELLED, Examples, Kind

__all__ = [
    "class_names",
    "default_metrics",
    "encode",
    "find_columns",
    "glue_metrics",
    "label_kind",
    "positive_class",
    "require_columns",
]

# In order: a table of QNLI has "question" and "sentence", so pairs come before single texts.
_PAIRS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("premise", "hypothesis"),
    ("#1 String", "#2 String"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("text", "text_pair"),
)
_SINGLES = ("sentence", "text", "question", "review")
_SCORES = ("score", "similarity_score")
_LABELS = ("label", "labels", "gold_label", "is_duplicate", "Quality", "class", *_SCORES)

# GLUE scores these by F1 first; by their rows alone they are tasks of two classes like others.
_F1_FIRST = ("mrpc", "qqp")

# Where alphabetical order is not the one GLUE numbers its classes in.
_KNOWN_ORDERS = (("entailment", "neutral", "contradiction"),)


def find_columns(
    table: Table, text: str | None, pair: str | None, label: str | None
) -> tuple[str, str | None, str]:
    """The names of the text, pair and label columns: as given, else by the usual names."""
    if pair is not None and text is None:
        raise ValueError(f"load_task: pair is {pair!r} and text is None, expected text too")
    found = listing(list(table.columns))
    given = [("text", text), ("pair", pair), ("label", label)]
    for argument, name in given:
        if name is not None and name not in table.columns:
            raise ValueError(
                f"load_task: {argument} is {name!r}, expected one of the columns of "
                f"{table.source}: {found}"
            )
    if text is None:
        text, pair = _usual_texts(table, found)
    if label is None:
        label = next((name for name in _LABELS if name in table.columns), None)
    if label is None:
        raise ValueError(
            f"load_task: {table.source} has the columns {found}, expected a label column: one of "
            f"{listing(_LABELS)}, or the one named by label="
        )
    if label in (text, pair) or text == pair:
        raise ValueError(
            f"load_task: text, pair and label are {text!r}, {pair!r} and {label!r}, "
            "expected different columns"
        )
    return text, pair, label


def _usual_texts(table: Table, found: str) -> tuple[str, str | None]:
    for first, second in _PAIRS:
        if first in table.columns and second in table.columns:
            return first, second
    for name in _SINGLES:
        if name in table.columns:
            return name, None
    pairs = ", ".join(f"{first!r} with {second!r}" for first, second in _PAIRS)
    raise ValueError(
        f"load_task: {table.source} has the columns {found}, expected a text column: one of "
        f"{listing(_SINGLES)}, or {pairs}, or those named by text= and pair="
    )


def require_columns(table: Table, names: Sequence[str]) -> None:
    """ValueError where a split lacks a column that the train split has."""
    for name in names:
        if name not in table.columns:
            raise ValueError(
                f"load_task: {table.source} has the columns {listing(list(table.columns))}, "
                f"expected {name!r} as in the train split"
            )


def label_kind(table: Table, column: str) -> Kind:
    """Regression where the column is a score or holds a number with a fraction, else classes."""
    if column in table.class_names:
        return "classification"
    if column in _SCORES:
        return "regression"
    for i in range(len(table)):
        number = _number(as_label(table, i, column))
        if number is not None and math.isfinite(number) and not number.is_integer():
            return "regression"
    return "classification"


def class_names(table: Table, column: str, labels: Sequence[str] | None) -> tuple[str, ...]:
    """The classes in a defined order, at least two of them in use.

    ``labels`` as given, else those of a hub's own feature, else those found in the column:
    whole numbers by value, GLUE's names as GLUE numbers them, others by code point.
    """
    present = dict.fromkeys(as_label(table, i, column) for i in range(len(table)))
    if labels is not None:
        names = tuple(labels)
        if len(set(names)) != len(names) or len(names) < 2:
            raise ValueError(f"load_task: labels is {names}, expected two or more different names")
    elif column in table.class_names:
        names = table.class_names[column]
    elif table.layout == "cola":
        names = ("0", "1")
    else:
        names = _ordered(present)
    if len(present) == 1:
        raise ValueError(
            f"load_task: {table.source}, column {column!r} is {next(iter(present))!r} in all "
            f"{len(table)} rows, expected at least two classes"
        )
    return names


def _ordered(present: dict[str, None]) -> tuple[str, ...]:
    for order in _KNOWN_ORDERS:
        if set(present) == set(order):
            return order
    try:
        return tuple(sorted(present, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(present))


def positive_class(names: tuple[str, ...], positive: str | None) -> int | None:
    """The index of the class that F1 is about, None where there are not two classes.

    As given, else the second of the two, but never a "not_" of the first.
    """
    if positive is not None and positive not in names:
        raise ValueError(f"load_task: positive is {positive!r}, expected one of {listing(names)}")
    if len(names) != 2:
        return None
    if positive is not None:
        return names.index(positive)
    return 0 if names[1] == f"not_{names[0]}" else 1


def default_metrics(name: str, kind: Kind, classes: int) -> tuple[str, ...]:
    """GLUE's metrics for the task, the primary one first."""
    if kind == "regression":
        return ("pearson", "spearman")
    if name.casefold() == "cola":
        return ("matthews", "accuracy")
    if classes != 2:
        return ("accuracy",)
    return glue_metrics(name, ("accuracy", "f1"))


def glue_metrics(task: str, metrics: Sequence[str]) -> tuple[str, ...]:
    """``metrics`` with the one first by which GLUE ranks the task of that name.

    >>> glue_metrics("mrpc", ("accuracy", "f1"))
    ('f1', 'accuracy')
    """
    first = "f1" if task.casefold() in _F1_FIRST and "f1" in metrics else metrics[0]
    return (first, *(m for m in metrics if m != first))


def encode(
    table: Table, columns: tuple[str, str | None, str], names: tuple[str, ...] | None
) -> Examples:
    """Texts and labels of a split; ``names`` are the classes, None for regression.

    A table without the label column gives :data:`UNLABELLED` (NaN for regression).
    """
    text, pair, label = columns
    count = range(len(table))
    labels: NDArray[Any]
    if names is None:
        labels = np.array([_score(table, i, label) for i in count], dtype=np.float32)
    else:
        index = {name: position for position, name in enumerate(names)}
        labels = np.array([_class(table, i, label, index) for i in count], dtype=np.int64)
    return Examples(
        texts=[as_text(table, i, text) for i in count],
        pairs=None if pair is None else [as_text(table, i, pair) for i in count],
        labels=labels,
        rows=table.rows,
    )


def _class(table: Table, i: int, column: str, index: dict[str, int]) -> int:
    if column not in table.columns:
        return UNLABELLED
    name = as_label(table, i, column)
    if name not in index:
        raise table.error(i, column, repr(name), f"one of {listing(list(index))}")
    return index[name]


def _score(table: Table, i: int, column: str) -> float:
    if column not in table.columns:
        return math.nan
    text = as_label(table, i, column)
    number = _number(text)
    if number is None or not math.isfinite(number) or abs(number) > float(np.finfo(np.float32).max):
        raise table.error(i, column, repr(text), "a number")
    return number


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
