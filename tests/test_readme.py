"""The README's code runs as it stands, from top to bottom, and its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.environments import ROOT

README = (ROOT / "README.md").read_text("utf-8")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SENTENCES = ["it was finished in 1889 .", "when was the tower built ?"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def small_classifier(folder: Path) -> dict[str, Any]:
    """What the README calls ``model``, ``train_data`` and ``tokenizer``: the reader's own."""
    import torch
    import transformers

    vocabulary = folder / "vocab.txt"
    words = [*SPECIAL, *sorted({w for s in SENTENCES for w in s.split()})]
    vocabulary.write_text("\n".join(words) + "\n", "utf-8")
    tokenizer = transformers.BertTokenizerFast(vocab=str(vocabulary))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=32,
    )
    encoded = tokenizer(SENTENCES * 16)["input_ids"]
    return {
        "model": transformers.BertForSequenceClassification(config),
        "tokenizer": tokenizer,
        "train_data": [{"input_ids": ids, "labels": i % 2} for i, ids in enumerate(encoded)],
    }


def test_python_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "readme", **small_classifier(tmp_path)}
    sources = blocks("python")
    assert len(sources) == 4
    for source in sources:
        exec(compile(source, "README.md", "exec"), names)
    assert names["packed"].sparsity == pytest.approx(0.8, abs=0.01)
    assert names["y"].shape == (128, 3072)
    assert names["pruning"].masks
    assert len(names["predictions"].labels) == 1
    assert [pruning.progress for pruning in names["cascade"]] == [1.0, 1.0]
    assert (tmp_path / "runs/mine/packed/spatile.json").is_file()

    again = (
        names["Encoder"]
        .load("runs/mine/packed")
        .predict(["when was the tower built?"], pairs=["it was finished in 1889."])
    )
    first = names["predictions"].probabilities
    assert again.probabilities == pytest.approx(first, abs=1e-6)


def test_commands_exist() -> None:
    shell = "\n".join(blocks("sh"))
    targets = re.findall(r"`?make (\w[\w-]*)", README)
    assert {"demo", "test", "install", "lint", "bench", "clean"} <= set(targets)
    rules = (ROOT / "Makefile").read_text("utf-8")
    for target in targets:
        assert re.search(rf"^{target}\b.*:", rules, re.M), f"make {target} has no rule"
    commands = set(re.findall(r"^spatile (\w+)", shell, re.M))
    assert {"finetune", "predict", "explain", "report", "export"} <= commands
    for command in sorted(commands):
        run = subprocess.run(
            [str(Path(sys.executable).parent / "spatile"), command, "--help"],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert run.returncode == 0, run.stderr


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists() or link.startswith("https://"), link


def test_stated_patterns_are_patterns() -> None:
    import spatile as sp

    rows = re.findall(r"^\| `(sp\.\w+\(.*?\))` \| (.+?) \|", README, re.M)
    assert len(rows) == 5
    for call, spellings in rows:
        pattern = eval(call, {"sp": sp})
        spelled = [sp.as_pattern(s) for s in re.findall(r'"([^"]+)"', spellings)]
        assert pattern in spelled
