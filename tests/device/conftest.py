"""Devices are tested on the emulated CUDA library, or on a real one where it was loaded before."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import spatile as sp
from tests.cuda_on_cpu.build import CUDA, build

ROOT = Path(__file__).resolve().parents[2]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def library() -> Path:
    """The emulated library: the one that SPATILE_CUDA_LIBRARY names, or one built here."""
    named = os.environ.get("SPATILE_CUDA_LIBRARY", "")
    if "cuda_on_cpu" in Path(named).name:
        return Path(named)
    return build(ROOT / "build" / "cuda_on_cpu", sorted(CUDA.glob("*.cu")))


@pytest.fixture(scope="session")
def gpu(library: Path) -> str:
    """The name of a device of this process."""
    if "cuda:0" not in sp.devices():
        os.environ["SPATILE_CUDA_LIBRARY"] = str(library)
    assert "cuda:0" in sp.devices(), sp.info()["gpu"]
    return "cuda:0"


@pytest.fixture
def run(library: Path) -> Run:
    """Runs code in another process, which has the emulated library; variables of None are unset."""

    def start(code: str, **variables: str | None) -> subprocess.CompletedProcess[str]:
        given = {"SPATILE_CUDA_LIBRARY": str(library), "SPATILE_DEVICE": None, **variables}
        environment = {k: v for k, v in {**os.environ, **given}.items() if v is not None}
        start = "import numpy as np, spatile as sp\nx = np.ones((4, 8), np.float32)\n"
        return subprocess.run(
            [sys.executable, "-c", start + code],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment,
            check=False,
        )

    return start
