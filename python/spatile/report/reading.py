"""Reading ``report.json``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["read_report"]

_FORMAT, _VERSION = "spatile.report", 1


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The report of a run's folder, or of a ``report.json`` itself.

    Raises FileNotFoundError where there is none (yet), ValueError for a damaged or newer one.
    """
    given = Path(path)
    file = given / "report.json" if given.is_dir() else given
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (given / "run.json").is_file():
            raise FileNotFoundError(
                f"report: {given} is a run that has not come to its end, so it has no report.json; "
                f"finetune --resume continues it"
            ) from None
        raise FileNotFoundError(f"report: no {file}, expected the folder of a run") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"report: {file} is not valid JSON ({error})") from None
    if not isinstance(report, dict) or report.get("format") != _FORMAT:
        raise ValueError(f"report: {file}: format is not {_FORMAT!r}")
    if report.get("version") != _VERSION:
        raise ValueError(
            f"report: {file}: version is {report.get('version')!r}, expected {_VERSION}: it was "
            f"written by another version of spatile"
        )
    return report
