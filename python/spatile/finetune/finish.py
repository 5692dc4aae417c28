"""After training: pack the pruned model, check it against PyTorch's, time it, write the report."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import spatile
from spatile.finetune.checkpoints import load_classifier, load_tokenizer
from spatile.finetune.data.task import Task
from spatile.finetune.progress import Progress
from spatile.finetune.results import build_report
from spatile.finetune.run_folder import RunFolder, write_folder
from spatile.finetune.timing import Runner, batches_of, measure, torch_runner
from spatile.inference import Encoder
from spatile.report import model_sections, read_report, write_html
from spatile.sparsity import write_atomically

__all__ = ["TOLERANCE", "finish"]

#: How far logits of the packed model may be from those of the trained one.
TOLERANCE = 1e-4

# Of rows, those in which a near tie may be decided otherwise.
_TIES = 0.01

# Examples that are timed, by batch size: one alone as a service sees them, and many together.
_TIMED = {1: 48, 32: 128}


def finish(run: RunFolder, task: Task, progress: Progress, *, rounds: int) -> dict[str, Any]:
    """Write ``packed/``, ``report.json`` and ``report.html``; returns the report.

    Raises RuntimeError where the packed model's logits on dev are further than :data:`TOLERANCE`
    from those of the trained model; with schedules a row in a hundred may be.
    """
    settings = run.settings
    config = load_classifier(run.stage("dense")).config
    plan = settings.make_plan(config)
    kept = settings.schedules
    packed = Encoder.load(
        run.stage("retrained"), plan=plan, tokens=kept["tokens"], heads=kept["heads"]
    )
    write_folder(run.packed, lambda folder: packed.save(folder))
    packed = Encoder.load(run.packed)
    dense = Encoder.load(run.stage("dense"))
    agreement = {
        name: _agreement(task, run.logits(stage), encoder)
        for name, stage, encoder in (("packed", "retrained", packed), ("dense", "dense", dense))
    }
    check_agreement(agreement, run.packed)
    apart = agreement["packed"]["rows_apart"]
    progress.say(
        f"packed: logits agree with the trained model's within "
        f"{agreement['packed']['max_difference']:.1e} on {len(task.dev)} dev rows"
        + (f", but for {apart} in which a near tie went the other way" if apart else "")
    )
    timing = _timing(run, task, dense, packed, rounds) if rounds > 0 else None
    report = build_report(run, task, dense=dense, packed=packed, agreement=agreement, timing=timing)
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_html(report, run.path / "report.html", sections=model_sections(packed, task))
    write_atomically(run.path / "report.json", text.encode())
    return read_report(run.path)


def check_agreement(agreement: dict[str, dict[str, Any]], path: Path) -> None:
    """Raise RuntimeError where a model run by spatile differs from PyTorch's."""
    for name, found in agreement.items():
        # Written so that NaN fails too.
        if not found["max_difference"] <= TOLERANCE:
            raise RuntimeError(
                f"finetune: logits of the {name} model ({path}) differ by "
                f"{found['max_difference']:.3g} from PyTorch's on dev, expected at most "
                f"{TOLERANCE:g}; the checkpoints under stages/ are whole"
            )


def _agreement(task: Task, wanted: NDArray[np.float32], encoder: Encoder) -> dict[str, Any]:
    found = np.asarray(encoder.predict(task.dev.texts, task.dev.pairs).logits)
    same = None
    if task.kind == "classification":
        same = float((wanted.argmax(axis=1) == found.argmax(axis=1)).mean())
    differences = np.abs(wanted - found).max(axis=1)
    apart = ~(differences <= TOLERANCE)
    # Of two tokens or heads whose importance differs by rounding alone, each may keep another.
    allowed = 0
    if encoder.tokens is not None or encoder.heads is not None:
        allowed = max(1, int(_TIES * len(wanted)))
    if 0 < apart.sum() <= allowed and not np.isnan(differences).any():
        differences = np.where(apart, 0.0, differences)
    return {
        "max_difference": float(differences.max()),
        "same_predictions": same,
        "rows": len(wanted),
        "rows_apart": int(apart.sum()),
    }


def _timing(
    run: RunFolder, task: Task, dense: Encoder, packed: Encoder, rounds: int
) -> dict[str, Any]:
    model = load_classifier(run.stage("dense"), attention="sdpa")
    tokenizer = load_tokenizer(run.stage("dense"))
    runners: dict[str, Runner] = {
        "torch dense": torch_runner(model, tokenizer, run.settings.max_length),
        "spatile dense": lambda texts, pairs: dense.predict(texts, pairs),
        "spatile packed": lambda texts, pairs: packed.predict(texts, pairs),
    }
    threads = torch.get_num_threads()
    sizes = []
    with _same_threads(threads):
        for batch_size, count in _TIMED.items():
            examples = task.dev.take(min(count, len(task.dev)), seed=0)
            batches = batches_of(examples, batch_size)
            sizes.append(
                {
                    "batch_size": batch_size,
                    "examples": len(examples),
                    "milliseconds": measure(runners, batches, rounds=rounds),
                }
            )
    return {
        "sizes": sizes,
        "rounds": rounds,
        "threads": threads,
        "what": "text in, logits out, tokenizing included; batches of similar length",
    }


@contextlib.contextmanager
def _same_threads(threads: int) -> Iterator[None]:
    before = spatile.num_threads()
    spatile.set_num_threads(threads)
    try:
        yield
    finally:
        spatile.set_num_threads(before)
