"""Reading ``report.json``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from spatile.sparsity import read_document

__all__ = ["read_report"]

_FORMAT, _VERSION = "spatile.report", 1


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The report of a run's folder, or of a ``report.json`` itself.

    Raises FileNotFoundError where there is none (yet), ValueError for a damaged or newer one.
    """
    given = Path(path)
    file = given / "report.json" if given.is_dir() else given
    missing = f"report: no {file}, expected the folder of a run"
    if (given / "run.json").is_file():
        missing = (
            f"report: {given} is a run that has not come to its end, so it has no report.json; "
            f"finetune --resume continues it"
        )
    return read_document(file, format=_FORMAT, version=_VERSION, missing=missing)
