"""Writing files so that a crash, a full disk or Ctrl-C leaves the previous one whole; and reading
the JSON documents among them.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["read_document", "write_atomically"]


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to a new file beside ``path``, flush it to disk, then rename it over ``path``.

    Raises OSError (of the operating system's own kind) naming ``path``; nothing is left behind.
    """
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; what we replace is readable as the umask says.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise type(error)(error.errno, error.strerror, str(path)) from None
        raise


def read_document(file: Path, *, format: str, version: int, missing: str) -> dict[str, Any]:
    """The JSON object in ``file``, which says of itself that it is ``format``, ``version``.

    Raises FileNotFoundError with the message ``missing`` where there is no such file, and
    ValueError naming the file for one that is damaged, something else, or of another version.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(missing) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(document, dict) or document.get("format") != format:
        raise ValueError(f"{file}: format is not {format!r}")
    if document.get("version") != version:
        raise ValueError(
            f"{file}: version is {document.get('version')!r}, expected {version}: it was written "
            f"by another version of spatile"
        )
    return document
