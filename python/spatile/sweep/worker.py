"""The process that trains and evaluates a sweep's models, one after another, and times them.

Jobs come as lines of JSON on standard input; what becomes of them goes out the same way. It ends
when its input does: a sweep that was killed leaves nobody at work behind it.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

from spatile.finetune.progress import Progress
from spatile.finetune.settings import Settings

__all__ = ["main"]


class _Steps(Progress):
    """Reports each step of training to the sweep."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(quiet=True)
        self._out = out

    def advance(self, loss: float | None = None) -> None:
        _send(self._out, event="step")


def main() -> None:
    """Do what comes in, until nothing more can come."""
    # Where the sweep itself runs in the background of a shell, Ctrl-C is ignored from birth.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # What a library prints must not get between the lines of JSON.
    out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    jobs: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()

    from spatile.finetune.memory import keep_freed_memory

    keep_freed_memory()
    models: dict[str, Any] = {}
    while True:
        job = jobs.get()
        try:
            if job["kind"] == "time":
                result = _time(job, models)
            elif job["kind"] == "train":
                result = _train(job, out)
            else:
                result = _evaluate(job)
            _send(out, event="done", result=result)
        except KeyboardInterrupt:
            _send(out, event="stopped")
        except Exception as error:
            traceback.print_exc()
            words = " ".join(str(error).split()) or type(error).__name__
            _send(out, event="failed", error=words)


def _listen(jobs: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin.buffer:
        jobs.put(json.loads(line))
    os._exit(0)


def _send(out: TextIO, **message: Any) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


def _train(job: dict[str, Any], out: TextIO) -> dict[str, Any]:
    from spatile.finetune.pipeline import finetune
    from spatile.finetune.run_folder import RunFolder
    from spatile.sparsity import Plan

    folder = Path(job["out"])
    started = (folder / "run.json").is_file()
    wanted = Settings.from_dict(job["settings"])
    if started:
        # The dense model that it started from is in the sweep's folder, wherever that is now.
        RunFolder.open(folder).relocate(wanted)
    else:
        # What was killed before it had noted anything has nothing to go on from.
        shutil.rmtree(folder, ignore_errors=True)
    settings = wanted.to_dict()
    plan = settings.pop("plan")
    finetune(
        out=folder,
        plan=None if plan is None else Plan.from_dict(plan),
        resume=started,
        threads=job["threads"],
        timing_rounds=0,
        progress=_Steps(out),
        **settings,
    )
    return _found(job)


def _evaluate(job: dict[str, Any]) -> dict[str, Any]:
    """Pack the dense model with the schedules of a cell that is not trained, and score it."""
    import spatile
    from spatile.finetune.run_folder import write_folder
    from spatile.inference import Encoder

    spatile.set_num_threads(job["threads"])
    kept = Settings.from_dict(job["settings"]).schedules
    encoder = Encoder.load(job["dense"], tokens=kept["tokens"], heads=kept["heads"])
    write_folder(Path(job["out"]) / "packed", lambda folder: encoder.save(folder))
    return _found(job)


def _found(job: dict[str, Any]) -> dict[str, Any]:
    """What the packed model scores on dev, and its multiply-adds per row beside the dense ones.

    Row by row: what all inputs of a batch drop of a layer's heads need not be computed at all.
    """
    from spatile.finetune.environment import environment
    from spatile.finetune.tasks import load_data, scores_of
    from spatile.inference import Encoder
    from spatile.sweep.rows import predictions

    start = time.perf_counter()
    task = load_data(Settings.from_dict(job["settings"]))
    encoder = Encoder.load(Path(job["out"]) / "packed")
    found = encoder.predict(task.dev.texts, task.dev.pairs, batch_size=1)
    scores = scores_of(task, found.logits)
    assert found.cost is not None
    return {
        "metrics": {name: score.to_json()["value"] for name, score in scores.items()},
        "multiply_adds": {
            "packed": found.cost.actual.multiply_adds / len(task.dev),
            "dense": found.cost.dense.multiply_adds / len(task.dev),
        },
        "predictions": predictions(task, found.logits),
        "seconds": round(time.perf_counter() - start, 1),
        "environment": environment(),
    }


def _time(job: dict[str, Any], models: dict[str, Any]) -> dict[str, Any]:
    """Time a packed model, interleaved with its dense one run by spatile and by PyTorch."""
    import torch

    import spatile
    from spatile.finetune.checkpoints import load_classifier, load_tokenizer
    from spatile.finetune.tasks import load_data
    from spatile.finetune.timing import batches_of, measure, torch_runner
    from spatile.inference import Encoder

    torch.set_num_threads(job["threads"])
    spatile.set_num_threads(job["threads"])
    settings = Settings.from_dict(job["settings"])
    if not models:
        models["torch"] = torch_runner(
            load_classifier(job["dense"], attention="sdpa"),
            load_tokenizer(job["dense"]),
            settings.max_length,
        )
        models["dense"] = Encoder.load(job["dense"])
        dev = load_data(settings).dev
        models["batches"] = batches_of(dev.take(min(job["examples"], len(dev)), seed=0), 1)
    packed = Encoder.load(job["packed"])
    milliseconds = measure(
        {
            "torch dense": models["torch"],
            "spatile dense": lambda texts, pairs: models["dense"].predict(texts, pairs),
            "spatile packed": lambda texts, pairs: packed.predict(texts, pairs),
        },
        models["batches"],
        rounds=job["rounds"],
    )
    return {
        "milliseconds": milliseconds,
        "threads": job["threads"],
        "examples": len(models["batches"]),
        "rounds": job["rounds"],
    }


if __name__ == "__main__":
    main()
