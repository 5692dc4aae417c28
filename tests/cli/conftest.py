"""The run on the small model that the pipeline's tests use too; how a command ended."""

from __future__ import annotations

import pytest

from spatile.cli import main
from tests.finetune.conftest import (  # noqa: F401
    finished,
    finished_pairs,
    tiny_data,
    tiny_model,
)

Capture = pytest.CaptureFixture[str]


def code_of(*arguments: object) -> int:
    """The exit code, whether ``main`` returns it or argparse exits with it."""
    try:
        return main([str(a) for a in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def one_line(capsys: Capture) -> str:
    """Standard error, which is one line that begins with the program's name."""
    err = capsys.readouterr().err
    assert err.startswith("spatile: ")
    assert err.count("\n") == 1
    return err
