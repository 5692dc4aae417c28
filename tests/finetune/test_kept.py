"""Runs in which tokens and heads go: what is scored, packed, taught and resumed with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from spatile.cli import main
from spatile.finetune import RunFolder, Settings, finetune
from spatile.finetune.data import load_task
from spatile.finetune.finish import _agreement, check_agreement
from spatile.inference import Encoder
from spatile.report import render_text
from spatile.sparsity import Plan, Schedule
from spatile.torch import HeadPruning, TokenPruning

from .conftest import TINY, Finished, logits_of
from .test_resume import end, resume, saved, wait_for

KEPT: dict[str, Any] = {
    **TINY,
    "saliency": "second-order",
    "calibration_rows": 24,
    "scope": "global",
    "prunings": 3,
    "gradual": 0.5,
    "epochs_dense": 3.0,
    "epochs_reweighted": 0.0,
    "distill": 0.5,
    "distill_hidden": 1.0,
    "keep_tokens": 0.7,
    "keep_heads": 0.75,
}
TOKENS, HEADS = Schedule.linear(0.7), Schedule.linear(0.75)  # 40 % and half in the second layer


@pytest.fixture(scope="module")
def kept_run(
    tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """Tiles, tokens and heads in one run."""
    out = tmp_path_factory.mktemp("kept") / "run"
    return Finished(out, finetune(tiny_model, tiny_data, out=out, **KEPT))


def pruned_logits(folder: Path, data: Path) -> np.ndarray[Any, Any]:
    """Logits on dev by PyTorch, row by row, of a stage with both schedules at work."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    TokenPruning(TOKENS).attach(model)
    HeadPruning(HEADS).attach(model)
    with torch.no_grad():
        rows = [
            model(**tokenizer(text, return_tensors="pt")).logits[0].numpy()
            for text in load_task(data).dev.texts
        ]
    return np.stack(rows)


def test_stages_are_scored_with_what_had_come_on_by_then(
    kept_run: Finished, tiny_data: Path
) -> None:
    """Nothing in the dense stage; all of it when the last tiles go, and at the end."""
    run = RunFolder.open(kept_run.folder)
    found = logits_of(run.stage("dense"), tiny_data)
    np.testing.assert_allclose(run.logits("dense"), found, atol=1e-5)
    for stage in ("pruned", "retrained"):
        found = pruned_logits(run.stage(stage), tiny_data)
        np.testing.assert_allclose(run.logits(stage), found, atol=1e-5)
        assert np.abs(logits_of(run.stage(stage), tiny_data) - found).max() > 1e-3


def test_the_packed_model_keeps_its_schedules(kept_run: Finished, tiny_data: Path) -> None:
    packed = Encoder.load(kept_run.folder / "packed")
    assert (packed.tokens, packed.heads) == (TOKENS, HEADS)
    assert packed.summary().sparsity == pytest.approx(0.5, abs=0.02)
    dev = load_task(tiny_data).dev
    found = packed.predict(dev.texts).logits
    np.testing.assert_allclose(
        found, RunFolder.open(kept_run.folder).logits("retrained"), atol=1e-4
    )


def test_the_report_says_what_is_kept(kept_run: Finished) -> None:
    report = kept_run.report
    assert report["schedules"] == {"tokens": {"average": 0.7}, "heads": {"average": 0.75}}
    assert report["agreement"]["packed"]["rows_apart"] == 0
    work = report["multiply_adds"]
    assert work["packed"] < 0.5 * 0.6 * work["dense"]
    assert "70.0 % of an input's tokens" in render_text(report)


def test_hidden_states_are_learned_at_the_kept_tokens(tiny_model: Path, tmp_path: Path) -> None:
    """A teacher whose other hidden states are elsewhere teaches the same."""
    from spatile.finetune.batches import Encoded
    from spatile.finetune.checkpoints import load_classifier
    from spatile.finetune.teacher import Teacher
    from spatile.torch import distillation_loss, hidden_loss

    student, other = load_classifier(tiny_model), load_classifier(tiny_model)
    other.save_pretrained(tmp_path)
    other.eval()
    rows = [{"input_ids": list(range(4, 4 + n)), "attention_mask": [1] * n} for n in (20, 13)]

    def pad(chosen: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        return {k: torch.tensor([r[k] + [0] * (20 - len(r[k])) for r in chosen]) for k in rows[0]}

    data = Encoded(rows, np.zeros(2), pad)
    pruning = TokenPruning(TOKENS).attach(student.eval())
    batch = data.pad(rows)
    states = other(**batch, output_hidden_states=True)
    for weight in (0.0, 1e-12):  # kept once in bfloat16, or made beside the student
        settings = Settings("m", "d", 0.5, distill_attention=weight)
        teacher = Teacher(tmp_path, settings, data, linear=False)
        if weight:
            teacher._keeps_hidden = False
            teacher._settings = Settings("m", "d", 0.5)
        outputs, loss = teacher.run(student, {**batch, "index": torch.tensor([0, 1])})
        spoilt = []
        for state, mask in zip(states.hidden_states[1:], pruning.masks, strict=True):
            spoilt.append(torch.where(mask[..., None], state, torch.full_like(state, 9.0)))
        assert [int(mask.sum()) for mask in pruning.masks] == [13, 13]
        expected = 0.5 * distillation_loss(outputs.logits, states.logits)
        expected = expected + hidden_loss(
            outputs.hidden_states[1:], spoilt, attention_mask=pruning.masks
        )
        assert float(loss) == pytest.approx(float(expected), rel=2e-2)
        assert float(loss) < 1.0


def test_tokens_alone_without_any_sparsity(
    tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """With more classes of importance than schedules: heads stay, and every weight does."""
    settings = {**KEPT, "sparsity": 0.0, "saliency": "auto", "keep_heads": None}
    report = finetune(
        tiny_model, tiny_data, out=tmp_path / "run", **{**settings, "timing_rounds": 0}
    )
    assert report["schedules"] == {"tokens": {"average": 0.7}, "heads": None}
    assert report["pruning"]["saliency"] == "magnitude", "nothing was calibrated for"
    packed = Encoder.load(tmp_path / "run" / "packed")
    assert packed.summary().sparsity == 0.0
    assert packed.heads is None


def test_a_killed_run_resumes_to_the_same_bits(
    tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Killed while tokens are on their way: steps end at 24 and 72, the schedules at 48."""
    options = [
        "finetune", f"--model={tiny_model}", f"--data={tiny_data}", "--sparsity=0.5",
        "--epochs-dense=2", "--epochs-retrain=4", "--gradual=0.5", "--batch-size=4", "--lr=1e-3",
        "--max-length=64", "--checkpoint-every=5", "--threads=1", "--timing-rounds=0",
        "--linear=spatile", "--calibration-rows=24", "--keep-tokens=0.7", "--keep-heads=0.75",
        "--neurons=0.5",
    ]  # fmt: skip
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert main([*options, "--out", str(whole)]) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "spatile", *options, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wait_for(process, lambda: saved(out, 35))
    process.kill()
    end(process)
    assert not (out / "report.json").exists()
    assert resume(out) == 0
    for stage in ("dense", "pruned", "retrained"):
        mine, other = (f / "stages" / stage / "model.safetensors" for f in (out, whole))
        assert mine.read_bytes() == other.read_bytes(), stage
    reports = [json.loads((f / "report.json").read_text("utf-8")) for f in (out, whole)]
    for key in ("scores", "schedules", "multiply_adds", "pruning"):
        assert reports[0][key] == reports[1][key], key


# ---- how near the packed model must be


class _Packed:
    """Says what it is told to say."""

    def __init__(self, logits: Any, tokens: Schedule | None) -> None:
        self.logits, self.tokens, self.heads = logits, tokens, None

    def predict(self, texts: Any, pairs: Any) -> Any:
        return SimpleNamespace(logits=self.logits)


@pytest.mark.parametrize(
    ("rows", "off", "tokens", "passes"),
    [
        (300, 3, TOKENS, True),
        (300, 4, TOKENS, False),
        (24, 1, TOKENS, True),
        (24, 1, None, False),
        (24, 0, None, True),
    ],
)
def test_one_row_in_a_hundred_may_be_a_near_tie(
    rows: int, off: int, tokens: Schedule | None, passes: bool
) -> None:
    wanted = np.zeros((rows, 2), np.float32)
    found = wanted.copy()
    found[:off] += 0.5
    task: Any = SimpleNamespace(
        kind="classification", dev=SimpleNamespace(texts=[""] * rows, pairs=None)
    )
    packed: Any = _Packed(found, tokens)
    agreement = _agreement(task, wanted, packed)
    assert agreement["rows_apart"] == off
    if passes:
        check_agreement({"packed": agreement}, Path("run"))
        assert agreement["max_difference"] == 0.0
    else:
        with pytest.raises(RuntimeError, match=r"differ by 0\.5 from PyTorch's"):
            check_agreement({"packed": agreement}, Path("run"))
    found[0] = np.nan
    with pytest.raises(RuntimeError, match="differ by nan"):
        check_agreement({"packed": _agreement(task, wanted, packed)}, Path("run"))


# ---- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_tokens": 0.0}, r"finetune: keep_tokens is 0.0, expected a fraction in \(0, 1\]"),
        ({"keep_heads": 1.5}, r"finetune: keep_heads is 1.5, expected a fraction in \(0, 1\]"),
        ({"keep_tokens": True}, "keep_tokens is True, expected"),
        ({"keep_tokens": 0.5}, r"finetune: keep_tokens: schedule: average is 0.5, expected more"),
        ({"layers": 0.5}, "finetune: keep_tokens: schedule: average is 0.7, expected 1: all 1 lay"),
        ({"distill_attention": 1.0}, "distill_attention is 1, expected 0 with keep_tokens or keep"),
        ({"pattern": "attention-aware", "precompute": True}, "precompute is True, expected False"),
        ({"pattern": "attention-aware", "precompute": "auto"}, "precompute is 'auto', expected Fa"),
        ({**TINY, "twin": True}, "twin is True, expected False with keep_tokens or keep_heads"),
    ],
)
def test_what_cannot_be_kept_is_said_before_anything_is_written(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        finetune(tiny_model, tiny_data, out=tmp_path / "run", **{**KEPT, **settings})
    assert not (tmp_path / "run").exists()


def test_a_plan_that_merges_is_refused_with_heads() -> None:
    plan = Plan.uniform("tile", 0.5).to_dict()
    plan["precompute"] = [True, False]
    Settings("m", "d", 0.5, plan=plan, keep_tokens=0.5)
    with pytest.raises(ValueError, match="precompute is True, expected False with keep_heads"):
        Settings("m", "d", 0.5, plan=plan, keep_heads=0.5)
