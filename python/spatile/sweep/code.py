"""Which code a sweep's rows come from."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import spatile

__all__ = ["code_version"]


@functools.cache
def code_version() -> str:
    """The commit of the checkout that spatile runs from, else the package's version.

    Twelve digits, and ``-dirty`` behind them where files that git knows are changed.
    """
    root = Path(spatile.__file__).resolve().parents[2]
    # Not any repository further up, in which spatile may be installed: its own.
    if not ((root / ".git").exists() and (root / "csrc").is_dir()):
        return spatile.__version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(
            [*command, "--abbrev=12"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return spatile.__version__
    return found.stdout.strip()
