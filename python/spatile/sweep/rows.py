"""The rows of a sweep as one JSON document, and as CSV.

A document has ``rows``, one per cell and metric: ``task``, ``pattern``, ``method``, ``sparsity``,
``seed``, ``metric``, ``value``, ``dense`` (the same metric of the same seed's dense model),
``latency_ms`` and ``dense_latency_ms`` (median milliseconds per example in batches of one, text in,
logits out, by spatile; null where not timed), and further ``torch_latency_ms``, the three's minima
``…_min_ms``, ``keep_tokens`` and ``keep_heads`` (averages over the layers), ``multiply_adds`` and
``dense_multiply_adds`` (per dev row, run alone, as counted by the engine), ``pruned`` (the metric
straight after pruning), ``floor`` (that of the majority class), ``achieved`` (the share of the
encoder's weights that is gone; ``sparsity`` counts groups), ``dev_rows``, ``threads`` (of the
timing) and ``seconds`` (of training and evaluating). A configuration is timed once, with the first
seed's model.

``machine`` says what the models were trained and timed on and by; its ``code`` lists the commits of
spatile that the rows come from (versions, where it did not run from a checkout), and is missing in
documents of earlier versions. ``seconds`` is what the sweep took, ``dense_seconds`` the training
of its dense models, its own or another sweep's, added up over the seeds.

``dev`` holds what the intervals are made from: labels and predicted classes, each a string with
one digit per dev row. Dev rows stand sorted by label and shuffled within it, so that the document
holds nothing of the data set but how many rows each class has.
"""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatile.finetune.data.task import Task
from spatile.finetune.tasks import predictions_of
from spatile.sparsity import read_document, write_atomically
from spatile.sweep.configuration import Configuration

__all__ = ["COLUMNS", "decode", "dev_order", "encode", "read_rows", "write_rows"]

_FORMAT, _VERSION = "spatile.sweep.rows", 1
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"

#: Keys of a row, in the order of the CSV file.
COLUMNS = (
    "task", "pattern", "method", "sparsity", "keep_tokens", "keep_heads", "seed", "metric", "value",
    "dense", "latency_ms", "dense_latency_ms", "torch_latency_ms", "latency_min_ms",
    "dense_latency_min_ms", "torch_latency_min_ms", "multiply_adds", "dense_multiply_adds",
    "pruned", "floor", "achieved", "dev_rows", "threads", "seconds",
)  # fmt: skip

# Documents of earlier versions lack these.
_ADDED = {"keep_tokens": 1.0, "keep_heads": 1.0, "multiply_adds": None, "dense_multiply_adds": None}

_KEYS = (
    "task", "metrics", "kind", "positive", "majority", "command", "seconds", "machine", "seeds",
    "floor", "rows", "dev",
)  # fmt: skip


def dev_order(labels: NDArray[Any]) -> NDArray[np.int64]:
    """The order in which a document holds the dev rows: by label, shuffled within it."""
    shuffled = np.random.default_rng(0).permutation(len(labels))
    return shuffled[np.argsort(labels[shuffled], kind="stable")]


def encode(values: NDArray[Any]) -> str | list[Any]:
    """Classes as one digit each, where there are no more than digits; numbers as a list.

    >>> import numpy as np
    >>> encode(np.array([0, 1, 1])), encode(np.array([0.5, 2.0], dtype=np.float32))
    ('011', [0.5, 2.0])
    """
    if values.dtype.kind == "f":
        return [round(float(v), 6) for v in values]
    if values.size and values.max() >= len(_DIGITS):
        return [int(v) for v in values]
    return "".join(_DIGITS[int(v)] for v in values)


def decode(coded: str | list[Any]) -> NDArray[Any]:
    """What :func:`encode` was given: int64, or float64.

    >>> decode("011").tolist()
    [0, 1, 1]
    """
    if isinstance(coded, str):
        return np.array([_DIGITS.index(c) for c in coded], dtype=np.int64)
    return np.asarray(coded)


def predictions(task: Task, logits: NDArray[np.float32]) -> str | list[Any]:
    """The predictions (n,) that logits mean, encoded."""
    return encode(predictions_of(task, logits)[dev_order(task.dev.labels)])


def write_rows(document: dict[str, Any], folder: Path) -> None:
    """Write ``rows.json`` and ``rows.csv``, each whole or not at all."""
    head = {"format": _FORMAT, "version": _VERSION, **document}
    write_atomically(folder / "rows.json", _json(head).encode())
    buffer = io.StringIO(newline="")
    table = csv.DictWriter(buffer, COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(document["rows"])
    write_atomically(folder / "rows.csv", buffer.getvalue().encode())


def _json(document: dict[str, Any]) -> str:
    """One line per key, and per row: what a version control system shows changes of."""

    def flat(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    def lines(items: list[str], ends: str) -> str:
        return f"{ends[0]}\n  " + ",\n  ".join(items) + f"\n {ends[1]}" if items else ends

    def body(key: str, value: Any) -> str:
        if key == "rows":
            return lines([flat(row) for row in value], "[]")
        if key == "dev":
            return lines([f"{flat(k)}: {flat(v)}" for k, v in value.items()], "{}")
        return flat(value)

    return "{\n " + ",\n ".join(f"{flat(k)}: {body(k, v)}" for k, v in document.items()) + "\n}\n"


def read_rows(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The document in a file, or in the folder of a sweep.

    Raises FileNotFoundError where there is none, ValueError for a damaged or newer one, for a row
    without one of its keys, and for predictions of another number of dev rows than there are.
    """
    file = Path(path) / "rows.json" if Path(path).is_dir() else Path(path)
    document = read_document(
        file,
        format=_FORMAT,
        version=_VERSION,
        missing=f"{file}: no such file, expected the rows of a sweep",
    )
    for key in _KEYS:
        if key not in document:
            raise ValueError(f"{file}: {key!r} is missing")
    document["rows"] = [{**_ADDED, **row} for row in document["rows"]]
    _check_rows(document, file)
    return document


def _check_rows(document: dict[str, Any], file: Path) -> None:
    count = len(document["dev"]["labels"])
    for name, coded in document["dev"].items():
        if len(coded) != count:
            raise ValueError(f"{file}: {name} has {len(coded)} dev rows, expected {count}")
    for i, row in enumerate(document["rows"]):
        missing = [key for key in COLUMNS if key not in row]
        if missing:
            raise ValueError(f"{file}: row {i} has no {missing[0]!r}")
        if row["dev_rows"] != count:
            raise ValueError(
                f"{file}: row {i} ({Configuration.of_row(row).with_seed(row['seed'])}) has "
                f"{row['dev_rows']} dev rows, expected {count}"
            )
