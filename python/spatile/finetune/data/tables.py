"""Reading a table of text from a file: TSV without quoting, or JSON lines.

Only ``\\t`` and ``\\n`` separate: a field may hold quotation marks and any other character, the
ones that ``str.splitlines`` would break at (U+2028, U+0085, …) included.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["COLA_COLUMNS", "JSON_SUFFIXES", "Table", "as_label", "as_text", "listing", "read_table"]

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
COLA_COLUMNS = ("source", "label", "mark", "sentence")

#: The cell of a JSON line that lacks a name which other lines have.
_ABSENT = object()


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of equal length with their origin. ``rows`` counts in ``unit`` ("line" or "row")."""

    source: str
    unit: str
    columns: dict[str, list[object]]
    rows: NDArray[np.int64]
    #: Of columns that a hub says hold classes: their names, in order.
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: "cola" for that task's own files or hub split, else "".
    layout: str = ""
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.rows)

    def error(self, i: int, column: str, found: str, expected: str) -> ValueError:
        """What to raise for a cell of row ``i`` (counted from 0)."""
        where = f"{self.source} {self.unit} {self.rows[i]}, column {column!r}"
        return ValueError(f"load_task: {where} is {found}, expected {expected}")

    def select(self, keep: NDArray[np.bool_]) -> Table:
        """The rows where ``keep`` (n,) is True."""
        index = np.flatnonzero(keep)
        columns = {name: [values[i] for i in index] for name, values in self.columns.items()}
        return replace(self, columns=columns, rows=self.rows[index])


def listing(names: Sequence[object], limit: int = 12) -> str:
    """Names for a message, quoted, each shortened to 40 characters, at most ``limit`` of them."""
    shown = [repr(s if len(s) <= 40 else s[:39] + "…") for s in map(str, names[:limit])]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shown) + more if shown else "none"


def as_text(table: Table, i: int, column: str) -> str:
    """The text of a cell; ValueError where it is not a string that UTF-8 can hold."""
    value = table.columns[column][i]
    if not isinstance(value, str):
        raise table.error(i, column, _kind(value), "text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        surrogate = f"text with the lone surrogate U+{ord(value[error.start]):04X}"
        raise table.error(i, column, surrogate, "Unicode text") from None
    return value


def as_label(table: Table, i: int, column: str) -> str:
    """The label of a cell as text: JSON's 1, 1.0 and true are all "1"."""
    value = table.columns[column][i]
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, (bool, int, np.integer, np.bool_)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        return str(int(value)) if float(value).is_integer() else str(float(value))
    raise table.error(i, column, _kind(value), "text or a number")


def _kind(value: object) -> str:
    if value is None or value is _ABSENT:
        return "null" if value is None else "missing"
    kinds: dict[type, str] = {
        bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object",
        str: "a string",
    }  # fmt: skip
    return kinds.get(type(value), f"a {type(value).__name__}")


def read_table(path: Path, *, source: str | None = None) -> Table:
    """Read a file of JSON lines (by its suffix) or TSV (any other) into a :class:`Table`.

    ``source`` names the file in messages, by default its path. FileNotFoundError, or ValueError
    that names file, line, found and expected.
    """
    source = str(path) if source is None else source
    lines = read_lines(path, source)
    reader = _read_json if path.suffix in JSON_SUFFIXES else _read_tsv
    return reader(lines, source)


def read_lines(path: Path, source: str) -> list[str]:
    """The lines of a UTF-8 file, without byte-order mark, line ends and empty lines at the end."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"load_task: {source} line {line} holds the byte 0x{error.object[error.start]:02x} "
            "where it is not UTF-8, expected a UTF-8 file"
        ) from None
    lines = text.split("\n")
    # "\r" is an ordinary character unless the file's first line says that lines end in "\r\n".
    if lines[0].endswith("\r"):
        lines = [line.removesuffix("\r") for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise ValueError(f"load_task: {source} is empty, expected a header and rows")
    return lines


# GLUE's own files of QQP hold rows that were broken when they were made.
_QQP = ("id", "qid1", "qid2", "question1", "question2", "is_duplicate")


def _read_tsv(lines: list[str], source: str) -> Table:
    header = lines[0].split("\t")
    # CoLA is the one GLUE task without a header: source, label 0 or 1, "*" or nothing, sentence.
    cola = len(header) == 4 and header[1] in ("0", "1") and header[2] in ("", "*")
    names = COLA_COLUMNS if cola else tuple(header)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"load_task: {source} line 1 names the column {twice[0]!r} twice, "
            "expected different names"
        )
    first = 0 if cola else 1
    if len(lines) == first:
        raise ValueError(f"load_task: {source} has a header and no rows, expected at least one row")
    rows = np.arange(first + 1, len(lines) + 1, dtype=np.int64)
    cells = [line.split("\t") for line in lines[first:]]
    notes: tuple[str, ...] = ()
    if names == _QQP:
        whole = [len(row) == len(names) for row in cells]
        if any(whole) and not all(whole):
            broken = len(whole) - sum(whole)
            notes = (f"{broken} rows of {source} left out: they have not {len(names)} columns",)
            cells = [row for row, is_whole in zip(cells, whole, strict=True) if is_whole]
            rows = rows[whole]
    for i, row in enumerate(cells):
        if len(row) != len(names):
            raise ValueError(
                f"load_task: {source} line {i + first + 1} has {len(row)} columns, expected "
                f"{len(names)} ({listing(names)}) separated by tabs"
            )
    columns: dict[str, list[object]] = {
        name: list(values) for name, values in zip(names, zip(*cells, strict=True), strict=True)
    }
    return Table(source, "line", columns, rows, layout="cola" if cola else "", notes=notes)


def _read_json(lines: list[str], source: str) -> Table:
    records: list[dict[str, object]] = []
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _not_object(source, number, f"not JSON ({error})") from None
        if not isinstance(value, dict):
            raise _not_object(source, number, _kind(value))
        records.append(value)
        rows.append(number)
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: [record.get(name, _ABSENT) for record in records] for name in names}
    return Table(source, "line", columns, np.array(rows, dtype=np.int64))


def _not_object(source: str, number: int, found: str) -> ValueError:
    return ValueError(
        f"load_task: {source} line {number} is {found}, expected one JSON object per line"
    )
