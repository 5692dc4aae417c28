"""What is measured on and with: the processor's name, the versions, the cache folder."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import spatile

__all__ = ["cache_folder", "processor", "versions"]

_MEASURED_WITH = ("numpy", "torch", "transformers", "onnxruntime", "openvino")


def processor() -> str:
    """The processor's own name for itself, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def versions() -> dict[str, str]:
    """Package → version, "absent" where it is not installed."""
    found = {"spatile": spatile.__version__, "python": platform.python_version()}
    for name in _MEASURED_WITH:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def cache_folder() -> Path:
    """Where this platform keeps what can be made again, and of it spatile's benchmarks'."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "spatile" / "bench"
