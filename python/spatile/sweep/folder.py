"""The folder of a sweep: what is finished in it, and how little of it is kept.

``sweep.json`` (the grid, the time spent), ``dense/seed-N`` and ``cells/NAME`` (``run``, a folder
of ``spatile finetune``, ``result.json`` once it is through and ``timing.json`` once it is timed),
``rows.json``, ``rows.csv``, and at the end ``results.md`` with its plots.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spatile.finetune.dense_start import DENSE_FIELDS
from spatile.finetune.run_folder import RunFolder, write_folder
from spatile.sparsity import read_document, write_atomically
from spatile.sweep.spec import Cell, Spec

__all__ = ["SweepFolder"]

_FORMAT, _VERSION = "spatile.sweep", 1

# Wherever the data is, its rows are compared.
_OF_THE_MODEL = DENSE_FIELDS - {"data", "dev_ids"}


class SweepFolder:
    """A sweep on disk. Make one with :meth:`create` or :meth:`open`."""

    def __init__(self, path: Path, spec: Spec, state: dict[str, Any]) -> None:
        self.path = path
        self.spec = spec
        self.state = state

    @classmethod
    def create(cls, path: str | os.PathLike[str], spec: Spec, *, data: str) -> SweepFolder:
        """Start a sweep in an absent or empty folder; ``data`` is the fingerprint of its rows."""
        check_new(path)
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        state = {"format": _FORMAT, "version": _VERSION, "data": data, "seconds": 0.0}
        made = cls(folder, spec, state)
        made.write()
        return made

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SweepFolder:
        """Open a sweep that was started before.

        Raises FileNotFoundError where there is none, ValueError for a damaged ``sweep.json``.
        """
        state = read_document(
            Path(path) / "sweep.json",
            format=_FORMAT,
            version=_VERSION,
            missing=f"{path}: no sweep.json, expected the folder of a sweep",
        )
        return cls(Path(path), Spec.from_dict(state.pop("spec")), state)

    def write(self) -> None:
        """Write ``sweep.json``, whole or not at all."""
        state = {**self.state, "spec": self.spec.to_dict()}
        text = json.dumps(state, indent=1, ensure_ascii=False) + "\n"
        write_atomically(self.path / "sweep.json", text.encode())

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Keep other processes out; the descriptor is for workers, who hold the lock as well.

        Raises RuntimeError where another process works on this sweep, or a worker of one that died
        still does.
        """
        descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError(
                    f"sweep: another process is at work in {self.path}, expected none"
                ) from None
            yield descriptor
        finally:
            os.close(descriptor)

    # ---- dense models and cells

    def dense(self, seed: int) -> Path:
        """The run of a seed's dense model."""
        return self.path / "dense" / f"seed-{seed}"

    def dense_checkpoint(self, seed: int) -> Path:
        """What the seed's cells start from."""
        return self.dense(seed) / "stages" / "dense"

    def has_dense(self, seed: int) -> bool:
        """Whether the seed's dense model is trained."""
        return (self.dense(seed) / "report.json").is_file()

    def cell(self, cell: Cell) -> Path:
        """The folder of a cell."""
        return self.path / "cells" / cell.folder

    def run(self, cell: Cell) -> Path:
        """The run that makes a cell's model."""
        return self.cell(cell) / "run"

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """What a finished cell came to; None for one that is not."""
        return _read(self.cell(cell) / "result.json", "without it the cell starts anew")

    def timing(self, cell: Cell) -> dict[str, Any] | None:
        """What running a cell's configuration takes, once that is measured."""
        file = self.cell(self.timed(cell)) / "timing.json"
        return _read(file, f"without {self.cell(self.timed(cell))} the cell starts anew")

    def timed(self, cell: Cell) -> Cell:
        """The cell of the same configuration whose packed model is the one that is timed."""
        return Cell(cell.configuration, self.spec.seeds[0])

    def write_result(self, cell: Cell, result: dict[str, Any]) -> None:
        """Note that a cell is finished."""
        _write(self.cell(cell) / "result.json", result)

    def write_timing(self, cell: Cell, timing: dict[str, Any]) -> None:
        """Note what running a cell's configuration takes."""
        _write(self.cell(self.timed(cell)) / "timing.json", timing)

    def check_dense(self, spec: Spec, data: str) -> None:
        """Raise ValueError where dense models here are not what another ``spec`` would train.

        ``data`` is the fingerprint of its rows.
        """
        for seed in filter(self.has_dense, spec.seeds):
            run = RunFolder.open(self.dense(seed))
            wanted = spec.dense_settings(seed)
            for name in sorted(_OF_THE_MODEL.intersection(run.settings.differences(wanted))):
                before, now = getattr(run.settings, name), getattr(wanted, name)
                raise ValueError(
                    f"sweep: {name} is {now!r}, expected {before!r} as in the dense models of "
                    f"{self.path}"
                )
            if run.state["data"] != data:
                raise ValueError(
                    f"sweep: data is {spec.data}, whose rows are not those that the dense models "
                    f"of {self.path} were trained on, expected the same"
                )

    def borrow_dense(self, other: SweepFolder) -> None:
        """Copy the dense runs that are lacking from another sweep, as far as it has them."""
        left_out = shutil.ignore_patterns("trainer", "packed", "pruned", "retrained")
        for seed in self.spec.seeds:
            if self.has_dense(seed) or not other.has_dense(seed):
                continue
            source = other.dense(seed)

            def copy(folder: Path, source: Path = source) -> None:
                shutil.copytree(source, folder, dirs_exist_ok=True, ignore=left_out)

            write_folder(self.dense(seed), copy)
            self.state["dense_from"] = os.fspath(other.path)
        self.write()

    def tidy_dense(self, seed: int) -> None:
        """Drop what no cell needs of a seed's dense run."""
        for name in ("trainer", "packed", "stages/pruned", "stages/retrained"):
            shutil.rmtree(self.dense(seed) / name, ignore_errors=True)

    def tidy(self, cell: Cell) -> None:
        """Drop what is not needed of a finished cell: all but its scores and logits.

        The packed model stays while it has not been timed.
        """
        for name in ("trainer", "stages", "twin"):
            shutil.rmtree(self.run(cell) / name, ignore_errors=True)
        if cell != self.timed(cell) or self.timing(cell) is not None:
            shutil.rmtree(self.run(cell) / "packed", ignore_errors=True)


def check_new(path: str | os.PathLike[str]) -> None:
    """Raise FileExistsError or NotADirectoryError unless ``path`` is absent or empty."""
    if (Path(path) / "sweep.json").is_file():
        raise FileExistsError(
            f"sweep: out is {path}, which holds a sweep, expected an empty or new folder; "
            f"--resume continues the sweep"
        )
    RunFolder.check_new(path, op="sweep")


def _read(file: Path, otherwise: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid JSON ({error}); {otherwise}") from None
    return found


def _write(file: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(file, text.encode())
