"""What a run ran on and with, for reports and rows."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import spatile

__all__ = ["environment"]


def environment() -> dict[str, Any]:
    """The versions, the processor and the CPU tier that this process runs with."""
    versions = {
        name: importlib.metadata.version(name)
        for name in ("torch", "transformers", "tokenizers", "numpy")
    }
    cpu = spatile.info()["cpu"]
    return {
        "spatile": spatile.__version__,
        "python": platform.python_version(),
        **versions,
        "processor": _processor(),
        "tier": cpu["tier"],
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
