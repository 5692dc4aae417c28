"""A data set of the hub, through the package ``datasets`` where it is installed."""

from __future__ import annotations

import importlib
import re
from typing import Any

import numpy as np

from .tables import Table, listing

__all__ = ["glue_task", "read_hub"]

_GLUE = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli")
_TRAIN = ("train",)
_DEV = ("validation", "dev", "validation_matched", "valid")
_TEST = ("test", "test_matched")


def glue_task(name: str) -> str | None:
    """The GLUE task that a name means, however it is spelled; None for what is none.

    >>> glue_task("mrpc"), glue_task("nyu-mll/glue:mrpc"), glue_task("owner/mrpc")
    ('mrpc', 'mrpc', None)
    """
    task = re.fullmatch(r"(?:(?:nyu-mll/)?glue[:/])?(\w+)", name)
    return task[1] if task and task[1] in _GLUE else None


def read_hub(name: str, test: bool) -> dict[str, Table]:
    """Tables of ``name``: a GLUE task ("mrpc", "glue/mrpc", "nyu-mll/glue:mrpc"), "owner/name" or
    "owner/name:config".

    ModuleNotFoundError without ``datasets``; RuntimeError with the hub's own words where the data
    set cannot be had.
    """
    advice = (
        "expected a folder with train and dev files of TSV or JSON lines, or a hub name that the "
        "package datasets can load"
    )
    task = glue_task(name)
    path, _, config = ("nyu-mll/glue", "", task) if task is not None else name.partition(":")
    try:
        library: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise ModuleNotFoundError(
            f"load_task: {name!r} is no folder here, and the package datasets is not installed "
            f"(pip install datasets), {advice}"
        ) from error
    try:
        splits = library.load_dataset(path, config or None)
    # The hub's client raises whatever its layers do: urllib3, requests, fsspec, pyarrow, its own.
    except Exception as error:
        raise RuntimeError(
            f"load_task: {name!r} is no folder here, and datasets could not load it "
            f"({type(error).__name__}: {error}), {advice}"
        ) from error
    wanted = {"train": _TRAIN, "dev": _DEV} | ({"test": _TEST} if test else {})
    layout = "cola" if task == "cola" else ""
    return {split: _table(name, splits, split, names, layout) for split, names in wanted.items()}


def _table(name: str, splits: Any, split: str, wanted: tuple[str, ...], layout: str) -> Table:
    found = next((key for key in wanted if key in splits), None)
    if found is None:
        raise ValueError(
            f"load_task: {name} has the splits {listing(list(splits))}, expected a {split} split: "
            f"one of {listing(wanted)}"
        )
    data = splits[found]
    columns: dict[str, list[object]] = {c: list(data[c]) for c in data.column_names}
    class_names = {}
    for column, feature in data.features.items():
        if getattr(feature, "names", None) is not None:
            names = class_names[column] = tuple(feature.names)
            columns[column] = [_class_name(names, value) for value in columns[column]]
    # The hub gives the rows of GLUE's test splits, which have no labels, the label -1.
    if split == "test" and all(value == -1 for value in columns.get("label", [])):
        columns.pop("label", None)
    rows = np.arange(len(data), dtype=np.int64)
    source = f"{name} {found}"
    return Table(source, "row", columns, rows, class_names=class_names, layout=layout)


def _class_name(names: tuple[str, ...], value: object) -> object:
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return value
