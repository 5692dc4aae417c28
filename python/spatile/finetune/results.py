"""The report of a run as one JSON-serialisable dict; see :func:`build_report` for its keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatile.finetune.data.task import Task
from spatile.finetune.environment import environment
from spatile.finetune.metrics import Score, majority_floor, paired_difference
from spatile.finetune.run_folder import RunFolder
from spatile.finetune.tasks import predictions_of

if TYPE_CHECKING:
    from spatile.inference import Encoder

__all__ = ["LAMBDA_ZERO", "STAGES", "build_report"]

STAGES = ("pretrained", "dense", "lambda_zero", "reweighted", "pruned", "retrained")

LAMBDA_ZERO = {
    False: "λ = 0: the weights at the start of the reweighted stage, pruned to the same sparsity "
    "without that stage (--twin trains it without the penalty instead)",
    True: "λ = 0: the reweighted stage trained once more from the same start, with the same "
    "batches and dropout but without the penalty, and pruned to the same sparsity",
}


def build_report(
    run: RunFolder,
    task: Task,
    *,
    dense: Encoder,
    packed: Encoder,
    agreement: dict[str, Any],
    timing: dict[str, Any] | None,
) -> dict[str, Any]:
    """Everything the report shows.

    ``model``, ``data``, ``settings``; ``floor`` (scores of the majority class), ``scores`` of each
    stage and their ``differences`` to the dense stage's; ``lambda_zero``; ``pruning`` (the
    callback's history); ``matrices``, ``sizes`` in bytes, ``multiply_adds`` per dev example,
    ``timing``, ``agreement``, ``environment``; ``schedules``: those of ``tokens`` and ``heads``
    (:meth:`Schedule.to_dict`) that the packed model runs with and the retrained one is scored with
    (a stage before that with as much as had gone by then); None where all are kept.
    """
    evaluations = run.state["evaluations"]
    return {
        "format": "spatile.report",
        "version": 1,
        "model": _model(dense),
        "data": _data(task),
        "settings": run.settings.to_dict(),
        "floor": _json(
            majority_floor(task.train.labels, task.dev.labels, task.metrics, positive=task.positive)
        ),
        "scores": {name: evaluations[name]["scores"] for name in STAGES if name in evaluations},
        "seconds": {name: evaluations[name]["seconds"] for name in STAGES if name in evaluations},
        "differences": _differences(run, task),
        "lambda_zero": LAMBDA_ZERO[run.settings.twin] if "lambda_zero" in evaluations else None,
        "pruning": run.state["history"],
        "schedules": _schedules(run),
        "summary": {"dense": dense.summary().to_json(), "packed": packed.summary().to_json()},
        "sizes": _sizes(run),
        "multiply_adds": _multiply_adds(task, dense, packed),
        "timing": timing,
        "agreement": agreement,
        "environment": environment(),
    }


def _json(scores: dict[str, Score]) -> dict[str, Any]:
    return {name: score.to_json() for name, score in scores.items()}


def _model(dense: Encoder) -> dict[str, Any]:
    a = dense.architecture
    return {"family": a.family, "layers": a.n_layers, "width": a.width, "heads": a.n_heads}


def _data(task: Task) -> dict[str, Any]:
    return {
        "name": task.name,
        "kind": task.kind,
        "labels": list(task.labels),
        "positive": None if task.positive is None else task.labels[task.positive],
        "metrics": list(task.metrics),
        "pairs": task.is_pair,
        "train_rows": len(task.train),
        "dev_rows": len(task.dev),
        "sources": list(task.sources),
        "notes": list(task.notes),
    }


def _differences(run: RunFolder, task: Task) -> dict[str, Any]:
    """Each later stage's scores minus the dense stage's; and pruned minus λ = 0."""

    def between(first: str, second: str) -> dict[str, Any]:
        a, b = (predictions_of(task, run.logits(name)) for name in (first, second))
        return {
            metric: paired_difference(
                metric, task.dev.labels, a, b, positive=task.positive
            ).to_json()
            for metric in task.metrics
        }

    pairs = [(name, "dense") for name in ("lambda_zero", "reweighted", "pruned", "retrained")]
    pairs.append(("pruned", "lambda_zero"))
    have = run.state["evaluations"]
    return {f"{a} - {b}": between(a, b) for a, b in pairs if a in have and b in have}


def _sizes(run: RunFolder) -> dict[str, int]:
    """Bytes on disk, tokenizer files left out."""
    return {
        "dense checkpoint": _bytes(run.stage("dense"), "config.json", "model*.safetensors"),
        "packed": _bytes(run.packed, "spatile.json", "model.safetensors"),
    }


def _bytes(folder: Path, *patterns: str) -> int:
    return sum(file.stat().st_size for p in patterns for file in folder.glob(p))


def _multiply_adds(task: Task, dense: Encoder, packed: Encoder) -> dict[str, float]:
    """Per dev row; where tokens or heads go, as counted while each row ran alone."""
    ids, types = dense.tokenize(task.dev.texts, task.dev.pairs)
    found = {
        name: encoder.multiply_adds(map(len, ids)) / len(ids)
        for name, encoder in (("dense", dense), ("packed", packed))
    }
    if packed.tokens is not None or packed.heads is not None:
        ran = (packed.run([i], [t]).cost for i, t in zip(ids, types, strict=True))
        found["packed"] = sum(cost.actual.multiply_adds for cost in ran) / len(ids)
    return found


def _schedules(run: RunFolder) -> dict[str, Any] | None:
    settings = run.settings
    if not settings.cascades:
        return None
    return {k: None if s is None else s.to_dict() for k, s in settings.schedules.items()}
