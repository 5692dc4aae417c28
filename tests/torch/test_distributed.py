"""The callback under torchrun: two real processes that talk over gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("ddp_run.py")


def torchrun(*arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(SCRIPT), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_two_processes_prune_alike_and_resume(tmp_path: Path) -> None:
    torchrun(str(tmp_path))
    masks = [load_file(tmp_path / f"rank{r}.masks") for r in (0, 1)]
    weights = [load_file(tmp_path / f"rank{r}.weights") for r in (0, 1)]
    assert len(masks[0]) == 12
    for name in masks[0]:
        assert torch.equal(masks[0][name], masks[1][name])
    for name in weights[0]:
        assert torch.equal(weights[0][name], weights[1][name])
    histories = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1)]
    assert histories[0] == histories[1]
    assert 0.45 < histories[0]["pruned"]["all"] < 0.55
    assert histories[0]["kept"] == [6] * 4, "tokens go from the model inside the wrapper"

    # Mid-retrain (step 8 of 9, pruned at 6), written once, read by both.
    checkpoint = tmp_path / "run" / "checkpoint-8"
    assert sorted(p.name for p in checkpoint.glob("spatile_pruning*")) == [
        "spatile_pruning.json",
        "spatile_pruning.safetensors",
    ]
    torchrun(str(tmp_path), str(checkpoint))
    for rank in (0, 1):
        resumed = load_file(tmp_path / f"resumed{rank}.weights")
        for name in resumed:
            assert torch.equal(resumed[name], weights[0][name]), name
