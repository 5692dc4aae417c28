"""The notebooks run from top to bottom, and are committed without their outputs."""

from __future__ import annotations

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

from tests.environments import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_they_are_all_there() -> None:
    assert [p.name for p in NOTEBOOKS] == [
        "01_prune_a_classifier.ipynb",
        "02_tokens_and_heads.ipynb",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_without_outputs(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def run(name: str) -> tuple[list[str], str, str]:
    """Kinds of what the cells show, what they print, and their HTML."""
    path = ROOT / "notebooks" / name
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    )
    client.execute()
    outputs = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    html = [str(output.get("data", {}).get("text/html", "")) for output in outputs]
    return kinds, "".join(output.get("text", "") for output in outputs), "\n".join(html)


def test_prune_a_classifier_runs() -> None:
    kinds, printed, _ = run("01_prune_a_classifier.ipynb")
    assert kinds.count("image/png") == 2, "the tiles' norms, and what the heads kept"
    assert "text/html" in kinds, "a SparseMatrix shows itself"
    assert "entailment" in printed


def test_tokens_and_heads_runs() -> None:
    kinds, printed, html = run("02_tokens_and_heads.ipynb")
    assert kinds.count("image/png") == 2, "schedules, and importance"
    assert html.count("<table class='spatile-explain'>") == 2
    assert "<s class='just'>" in html
    assert html.count("data:image/png") == 36, "a mask of each matrix"
    assert "-word- is dropped before this layer" in printed
    assert "6 rows of dev explained" in printed
    reductions = re.findall(r"\(([\d.]+)x less\)", printed)
    assert float(reductions[-1]) > 3, "of tiles, tokens and heads together"
    difference = re.search(r"PyTorch and of the engine differ by ([\d.e+-]+)", printed)
    assert difference
    assert float(difference[1]) < 1e-4
