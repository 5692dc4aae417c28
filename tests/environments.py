"""Small environments for tests of what was built: no pip, nothing but what is put in."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class BareEnvironment:
    """A virtual environment with NumPy and nothing else, until something is put into it."""

    def __init__(self, path: Path) -> None:
        venv.create(path, with_pip=False, symlinks=True)
        self.python = path / "bin" / "python"
        (self.packages,) = path.glob("lib/python*/site-packages")
        spec = importlib.util.find_spec("numpy")
        assert spec is not None
        assert spec.origin is not None
        numpy = Path(spec.origin).parent
        for name in ("numpy", "numpy.libs"):
            if (numpy.parent / name).is_dir():
                (self.packages / name).symlink_to(numpy.parent / name)

    def run(self, code: str) -> str:
        """What ``python -c code`` prints; AssertionError with its standard error where it fails."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SPATILE"))}
        result = subprocess.run(
            [str(self.python), "-c", code],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=env,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout


def checked(command: Sequence[str | Path]) -> None:
    """Run a command of a build; AssertionError with all that it printed where it fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    result = subprocess.run(
        [str(c) for c in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=600,
        cwd=ROOT,
        env={**os.environ, "PATH": path},
    )
    assert result.returncode == 0, result.stdout


def tool(name: str) -> str:
    """A build tool: the environment's own, else the one on PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f"{name} is not installed: the test extra's make target installs it"
    return found
