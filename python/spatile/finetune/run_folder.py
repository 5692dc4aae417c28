"""The folder of a run: what it holds, and how it is written so that a crash loses nothing.

``run.json`` (settings, evaluations so far), ``stages/NAME`` (Hugging Face checkpoints),
``predictions/NAME.npy`` (logits on dev), ``trainer/`` (what resuming needs), ``packed/``,
``report.json`` and ``report.html``.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatile.finetune.settings import Settings
from spatile.sparsity import read_document, write_atomically

__all__ = ["RunFolder", "disk_is_full", "write_folder"]

_FORMAT, _VERSION = "spatile.run", 1


class RunFolder:
    """A run on disk. Make one with :meth:`create` or :meth:`open`."""

    def __init__(self, path: Path, state: dict[str, Any]) -> None:
        self.path = path
        self.state = state

    @staticmethod
    def check_new(path: str | os.PathLike[str], *, op: str = "finetune") -> None:
        """Raise FileExistsError or NotADirectoryError unless ``path`` is absent or empty."""
        folder = Path(path)
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{op}: out is {folder}, a file, expected a folder")
        if folder.is_dir() and any(folder.iterdir()):
            holds = "a run" if (folder / "run.json").is_file() else "files"
            raise FileExistsError(
                f"{op}: out is {folder}, which holds {holds}, expected an empty or new folder"
                + ("; --resume continues the run" if holds == "a run" else "")
            )

    @classmethod
    def create(cls, path: str | os.PathLike[str], settings: Settings, *, data: str) -> RunFolder:
        """Start a run in an absent or empty folder; ``data`` is the fingerprint of its rows.

        Raises as :meth:`check_new` does, and OSError where the folder can't be written.
        """
        cls.check_new(path)
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        run = cls(
            folder,
            {
                "format": _FORMAT,
                "version": _VERSION,
                "settings": settings.to_dict(),
                "data": data,
                "stage": None,
                "evaluations": {},
            },
        )
        run.write()
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Open a run that was started before.

        Raises FileNotFoundError where there is none, ValueError for a damaged ``run.json`` and for
        one of a newer version.
        """
        folder = Path(path)
        state = read_document(
            folder / "run.json",
            format=_FORMAT,
            version=_VERSION,
            missing=f"{folder}: no run.json, expected the folder of a run",
        )
        return cls(folder, state)

    @property
    def settings(self) -> Settings:
        """What the run was asked to do."""
        return Settings.from_dict(self.state["settings"])

    def relocate(self, settings: Settings) -> None:
        """Note that the model and the data are where ``settings`` says, having been moved or not.

        Whoever calls this knows that the model is the same; rows are compared on resuming.
        """
        moved = {name: getattr(settings, name) for name in ("model", "data", "dev_ids")}
        if self.state["settings"] != self.state["settings"] | moved:
            self.state["settings"] |= moved
            self.write()

    @property
    def trainer(self) -> Path:
        """Where the Trainer keeps what it needs to resume."""
        return self.path / "trainer"

    @property
    def packed(self) -> Path:
        """Where the packed model is, once the run is through."""
        return self.path / "packed"

    def stage(self, name: str) -> Path:
        """The Hugging Face checkpoint of a stage."""
        return self.path / "stages" / name

    def write(self) -> None:
        """Write ``run.json``, whole or not at all."""
        text = json.dumps(self.state, indent=1, ensure_ascii=False) + "\n"
        write_atomically(self.path / "run.json", text.encode())

    def record(self, name: str, evaluation: dict[str, Any], logits: NDArray[np.float32]) -> None:
        """Note that a stage was reached: its scores, and its logits (n, outputs) on dev."""
        buffer = io.BytesIO()
        np.save(buffer, logits)
        (self.path / "predictions").mkdir(exist_ok=True)
        write_atomically(self.path / "predictions" / f"{name}.npy", buffer.getvalue())
        self.state["evaluations"][name] = evaluation
        self.state["stage"] = name
        self.write()

    def logits(self, name: str) -> NDArray[np.float32]:
        """The logits (n, outputs) on dev that :meth:`record` kept for a stage."""
        return np.asarray(np.load(self.path / "predictions" / f"{name}.npy"), dtype=np.float32)


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Have ``write`` fill a new folder beside ``path``, then put it in the place of ``path``.

    Where ``write`` fails, the folder that was at ``path`` before is still there and whole, and
    nothing is left beside it. Raises OSError naming ``path`` for a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        write(fresh)
        for file in fresh.rglob("*"):
            if file.is_file():
                _flush(file)
        umask = os.umask(0)
        os.umask(umask)
        fresh.chmod(0o777 & ~umask)
        if path.exists():
            # A folder can't be renamed over one that holds files; the old one waits beside it.
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            path.rename(old / path.name)
            try:
                fresh.rename(path)
            except BaseException:
                (old / path.name).rename(path)
                old.rmdir()
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            fresh.rename(path)
    except BaseException as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if disk_is_full(error):
            raise OSError(errno.ENOSPC, "no space left while saving", str(path)) from error
        raise


def _flush(file: Path) -> None:
    handle = os.open(file, os.O_RDONLY)
    with contextlib.suppress(OSError):
        os.fsync(handle)
    os.close(handle)


def disk_is_full(error: BaseException) -> bool:
    """Whether saving failed for want of space, in the words of whichever library was saving."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    # safetensors and torch report the operating system's error in words only.
    words = ("No space left", "File too large", "quota exceeded", "inline_container.cc")
    return isinstance(error, Exception) and any(w in str(error) for w in words)
