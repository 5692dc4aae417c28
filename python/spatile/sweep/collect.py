"""From a sweep's folder to its document of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatile.finetune.data.columns import glue_metrics
from spatile.finetune.data.task import Task
from spatile.finetune.metrics import majority_floor
from spatile.finetune.run_folder import RunFolder
from spatile.report import read_report
from spatile.sweep.code import code_version
from spatile.sweep.folder import SweepFolder
from spatile.sweep.rows import dev_order, encode, predictions
from spatile.sweep.spec import Cell

__all__ = ["collect", "result_of"]

#: How far logits of the dense model may be apart between its own run and one that starts from it.
_SAME = 1e-3


def result_of(folder: SweepFolder, cell: Cell, task: Task, found: dict[str, Any]) -> dict[str, Any]:
    """What a cell came to, of whose packed model the worker ``found`` what it scores and costs.

    Raises RuntimeError where a run did not start from its seed's dense model.
    """
    dense_run = RunFolder.open(folder.dense(cell.seed))
    dense_scores = dense_run.state["evaluations"]["dense"]["scores"]
    result = {
        "cell": cell.name,
        "metrics": {
            name: {"value": value, "dense": dense_scores[name]["value"], "pruned": None}
            for name, value in found["metrics"].items()
        },
        "achieved": 0.0,
        "code": code_version(),
        **{key: found[key] for key in ("multiply_adds", "seconds", "predictions")},
    }
    if folder.spec.trains(cell):
        result |= _of_run(folder, cell, task, dense_run.logits("dense"))
    return result


def _of_run(
    folder: SweepFolder, cell: Cell, task: Task, dense: NDArray[np.float32]
) -> dict[str, Any]:
    """What the run that trained a cell's model says of it."""
    run = RunFolder.open(folder.run(cell))
    report = read_report(run.path)
    apart = float(np.abs(run.logits("dense") - dense).max())
    if not apart <= _SAME:
        raise RuntimeError(
            f"sweep: {cell.name} started from logits that differ by {apart:.3g} from those of the "
            f"dense model of seed {cell.seed}, expected the same"
        )
    evaluations = run.state["evaluations"]
    after = evaluations.get("pruned", {}).get("scores", {})
    return {
        "metrics": {
            name: {
                "value": score["value"],
                "dense": evaluations["dense"]["scores"][name]["value"],
                "pruned": after.get(name, {}).get("value"),
            }
            for name, score in evaluations["retrained"]["scores"].items()
        },
        "achieved": report["summary"]["packed"]["sparsity"],
        "seconds": round(sum(e["seconds"] or 0.0 for e in evaluations.values()), 1),
        "predictions": predictions(task, run.logits("retrained")),
    }


def collect(folder: SweepFolder, task: Task, name: str) -> dict[str, Any]:
    """The document of what is finished; ``name`` is the task's (see :mod:`spatile.sweep.rows`)."""
    spec = folder.spec
    metrics = glue_metrics(name, task.metrics)
    floor = majority_floor(task.train.labels, task.dev.labels, metrics, positive=task.positive)
    floors = {m: s.to_json()["value"] for m, s in floor.items()}
    rows: list[dict[str, Any]] = []
    dev: dict[str, Any] = {"labels": encode(task.dev.labels[dev_order(task.dev.labels)])}
    dense_seconds = 0.0
    for seed in spec.seeds:
        if folder.has_dense(seed):
            run = RunFolder.open(folder.dense(seed))
            dev[f"dense seed {seed}"] = predictions(task, run.logits("dense"))
            dense_seconds += run.state["evaluations"]["dense"]["seconds"] or 0.0
    missing = []
    code: dict[str, None] = {}
    for cell in spec.cells():
        result = folder.result(cell)
        if result is None:
            missing.append(cell.name)
            continue
        dev[cell.name] = result["predictions"]
        if "code" in result:  # an earlier version did not note it
            code[result["code"]] = None
        timing = folder.timing(cell)
        rows += [
            _row(name, cell, metric, result, timing, floors[metric], len(task.dev))
            for metric in metrics
        ]
    return {
        "task": name,
        "metrics": list(metrics),
        "kind": task.kind,
        "classes": list(task.labels),
        "positive": task.positive,
        "majority": _majority(task),
        "model": spec.model,
        "command": spec.command(folder.path.resolve().name, dense=folder.state.get("dense_from")),
        "seconds": round(folder.state["seconds"], 1),
        "dense_seconds": round(dense_seconds, 1),
        "machine": {**folder.state.get("machine", {}), **({"code": list(code)} if code else {})},
        "train_rows": len(task.train),
        "seeds": list(spec.seeds),
        "methods": dict(spec.methods),
        "settings": spec.shared,
        "floor": floors,
        "missing": missing,
        "rows": rows,
        "dev": dev,
    }


def _majority(task: Task) -> int | None:
    if task.kind == "regression":
        return None
    values, counts = np.unique(task.train.labels, return_counts=True)
    return int(values[np.argmax(counts)])


def _row(
    task: str,
    cell: Cell,
    metric: str,
    result: dict[str, Any],
    timing: dict[str, Any] | None,
    floor: float | None,
    dev_rows: int,
) -> dict[str, Any]:
    times = {} if timing is None else timing["milliseconds"]

    def of(name: str, kind: str = "median") -> float | None:
        return round(times[name][kind], 4) if name in times else None

    return {
        "task": task,
        **cell.configuration._asdict(),
        "seed": cell.seed,
        "metric": metric,
        "value": result["metrics"][metric]["value"],
        "dense": result["metrics"][metric]["dense"],
        "latency_ms": of("spatile packed"),
        "dense_latency_ms": of("spatile dense"),
        "torch_latency_ms": of("torch dense"),
        "latency_min_ms": of("spatile packed", "min"),
        "dense_latency_min_ms": of("spatile dense", "min"),
        "torch_latency_min_ms": of("torch dense", "min"),
        "multiply_adds": result["multiply_adds"]["packed"],
        "dense_multiply_adds": result["multiply_adds"]["dense"],
        "pruned": result["metrics"][metric]["pruned"],
        "floor": floor,
        "achieved": result["achieved"],
        "dev_rows": dev_rows,
        "threads": None if timing is None else timing["threads"],
        "seconds": result["seconds"],
    }
