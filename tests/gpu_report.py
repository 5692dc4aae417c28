"""Runs pytest on a GPU and writes what came of it as JSON: ``python tests/gpu_report.py FILE ...``.

The arguments after FILE are pytest's. For `make test-gpu`, whose outcome is read elsewhere.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest


class Outcomes:
    """A pytest plugin: how many tests ended how, and what those said that failed."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failed: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.counts["failed"] += 1
            self.failed[report.nodeid] = str(report.longrepr)[-1000:]
        elif report.when == "call" or report.skipped:
            self.counts[report.outcome] += 1


def main(file: str, *arguments: str) -> int:
    import spatile as sp

    outcomes, started = Outcomes(), time.perf_counter()
    code = int(pytest.main(list(arguments), plugins=[outcomes]))
    told = {
        "gpu": sp.info()["gpu"],
        "exit": code,
        "seconds": round(time.perf_counter() - started, 1),
        **outcomes.counts,
        "failures": outcomes.failed,
    }
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(json.dumps(told, indent=1, default=str) + "\n", "utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
