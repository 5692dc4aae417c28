"""The sweep itself: dense models, then cells, then the clock."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from spatile.finetune.data.task import Task
from spatile.finetune.fingerprint import fingerprint
from spatile.finetune.progress import Progress
from spatile.finetune.run_folder import RunFolder
from spatile.finetune.settings import Settings
from spatile.finetune.tasks import load_data
from spatile.report import read_report
from spatile.sweep.collect import collect, result_of
from spatile.sweep.document import write_document
from spatile.sweep.folder import SweepFolder, check_new
from spatile.sweep.pool import Job, Pool
from spatile.sweep.rows import write_rows
from spatile.sweep.spec import Cell, Spec

__all__ = ["sweep"]

# Dev examples that are timed, one at a time.
_TIMED = 48


def sweep(
    spec: Spec | None,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    jobs: int = 1,
    threads: int | None = None,
    timing_rounds: int = 7,
    keep: bool = False,
    dense: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train and measure all cells of ``spec``; returns the rows that ``out`` holds too.

    For each seed one dense model is trained, from which all cells of the seed start. ``jobs`` runs
    are trained at once on ``threads`` threads each (default: the cores, shared out). Afterwards
    the packed model of each configuration is timed with nothing else running, on
    ``spec.latency_threads`` threads, in ``timing_rounds`` passes (0: not at all) interleaved with
    the dense model run by spatile and by PyTorch. ``dense`` is another sweep's folder, whose dense
    models serve here too as far as it has the seeds.

    ``out`` gets ``rows.json`` and ``rows.csv`` after every cell (:mod:`spatile.sweep.rows`), and
    at the end ``results.md`` with its plots. Of a finished cell its report and logits stay, with
    ``keep`` everything. With ``resume`` what is finished is not done again, what is not goes on
    from its last checkpoint, and ``spec`` may add patterns, methods, sparsities and seeds to what
    was asked for before; None adds nothing.

    Raises FileExistsError where ``out`` holds anything (unless resuming), ValueError for a
    ``spec`` or data whose rows could not be compared with those that are there, and for ``dense``
    models of other settings or rows, RuntimeError where
    cells failed, naming them, once the others are through, and KeyboardInterrupt after Ctrl-C, once
    each run has written a checkpoint.

    >>> from spatile.sweep import Spec, sweep                                   # doctest: +SKIP
    >>> spec = Spec("minilm", "data/qa", ("tile",), (0.5,), {"default": {}}, (0, 1, 2))
    >>> found = sweep(spec, "runs/sweep", jobs=2, threads=1)                    # doctest: +SKIP
    """
    if jobs < 1:
        raise ValueError(f"sweep: jobs is {jobs}, expected at least 1")
    if threads is None:
        threads = max(1, (os.cpu_count() or 1) // jobs)
    progress = Progress(quiet=True) if progress is None else progress
    other = None if dense is None else SweepFolder.open(dense)
    folder, task = _open(spec, out, other) if resume else _create(spec, out, other)
    with folder.locked() as lock:
        if other is not None:
            folder.borrow_dense(other)
        work = _Sweep(folder, task, progress, keep=keep)
        failed = work.train(jobs, threads, lock)
        if timing_rounds > 0:
            failed |= work.time(timing_rounds, lock)
        document = work.write()
        if failed:
            listed = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
            raise RuntimeError(f"sweep: {len(failed)} failed, --resume tries them again: {listed}")
        write_document([folder.path / "rows.json"], folder.path / "results.md")
    return document


def _create(
    spec: Spec | None, out: str | os.PathLike[str], other: SweepFolder | None
) -> tuple[SweepFolder, Task]:
    if spec is None:
        raise ValueError("sweep: spec is None, expected a grid, which only a resumed sweep has")
    check_new(out)
    task = load_data(spec.dense_settings(spec.seeds[0]))
    # Only what can be run may leave a folder, which would then be in the way.
    if other is not None:
        other.check_dense(spec, fingerprint(task))
    return SweepFolder.create(out, spec, data=fingerprint(task)), task


def _open(
    spec: Spec | None, out: str | os.PathLike[str], other: SweepFolder | None
) -> tuple[SweepFolder, Task]:
    folder = SweepFolder.open(out)
    wanted = folder.spec if spec is None else folder.spec.extended(spec)
    task = load_data(wanted.dense_settings(wanted.seeds[0]))
    if folder.state["data"] != fingerprint(task):
        raise ValueError(
            f"sweep: data is {wanted.data}, whose rows are not those that {folder.path} was "
            f"started with, expected the same"
        )
    if other is not None:
        other.check_dense(wanted, folder.state["data"])
    folder.spec = wanted
    _check_defaults(folder)
    folder.write()
    return folder, task


def _check_defaults(folder: SweepFolder) -> None:
    """Raise ValueError where new rows would come of other settings than those that are there.

    What a sweep was not told to set is set by the version of spatile that runs it.
    """
    spec = folder.spec
    if all(folder.result(cell) is not None for cell in spec.cells()):
        return
    made = [(f"dense seed {s}", folder.dense(s), spec.dense_settings(s)) for s in spec.seeds]
    made += [(c.name, folder.run(c), spec.cell_settings(c, "")) for c in spec.cells()]
    for name, run, wanted in made:
        if not (run / "run.json").is_file():
            continue
        before = RunFolder.open(run).settings
        changed = [n for n in before.differences(wanted) if n not in ("model", "data", "dev_ids")]
        if changed:
            was, now = getattr(before, changed[0]), getattr(wanted, changed[0])
            raise ValueError(
                f"sweep: {changed[0]} is {now!r}, expected {was!r} as in {name}, which another "
                f"version has trained: start a new sweep, with --dense for dense models that serve"
            )


class _Sweep:
    def __init__(self, folder: SweepFolder, task: Task, progress: Progress, *, keep: bool) -> None:
        self._folder, self._task, self._progress, self._keep = folder, task, progress, keep
        self._name = folder.spec.task or task.name
        self._clock = time.monotonic()
        self._steps: dict[str, int] = {}

    def write(self) -> dict[str, Any]:
        """Write the rows of what is finished, and the time spent so far."""
        now = time.monotonic()
        self._folder.state["seconds"] += now - self._clock
        self._clock = now
        self._folder.write()
        document = collect(self._folder, self._task, self._name)
        write_rows(document, self._folder.path)
        return document

    def train(self, jobs: int, threads: int, lock: int) -> dict[str, str]:
        """Train what is not finished; returns what failed."""
        folder = self._folder
        how = {"cores": os.cpu_count(), "jobs": jobs, "threads": threads}
        wanted = []
        for seed in folder.spec.seeds:
            if folder.has_dense(seed):
                self._tidy_dense(seed)
            else:
                wanted.append(self._dense_job(seed, how))
        for cell in folder.spec.cells():
            if folder.result(cell) is None:
                wanted.append(self._cell_job(cell, how))
            elif not self._keep:
                folder.tidy(cell)
        self.write()
        cells = len(folder.spec.cells())
        self._progress.say(
            f"{self._name}: {len(self._task.train)} train rows, {len(self._task.dev)} dev rows; "
            f"{len(folder.spec.seeds)} dense models and {cells} cells, {len(wanted)} to train, "
            f"{jobs} at once, {threads} thread{'s' if threads > 1 else ''} each"
        )
        self._progress.begin("sweep", sum(self._steps[job.name] for job in wanted))
        with self._timed(), Pool(jobs, threads, lock, self._stepped) as pool:
            failed = pool.run(wanted)
        for job in wanted:
            if job.name not in failed and not job.ready():
                failed[job.name] = "its dense model failed"
        return failed

    def time(self, rounds: int, lock: int) -> dict[str, str]:
        """Time each configuration that is not timed yet, alone; returns what failed."""
        folder, spec = self._folder, self._folder.spec
        wanted = []
        for cell in spec.cells():
            packed = folder.run(cell) / "packed" / "spatile.json"
            if cell == folder.timed(cell) and folder.timing(cell) is None and packed.is_file():
                wanted.append(self._timing_job(cell, rounds))
        if not wanted:
            return {}
        self._progress.begin("timing", len(wanted))
        with self._timed(), Pool(1, spec.latency_threads, lock, self._stepped) as pool:
            return pool.run(wanted)

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        """Whatever ends it, what was finished by then is in the rows."""
        try:
            yield
        finally:
            self._progress.end()
            self.write()

    # ---- jobs

    def _dense_job(self, seed: int, how: dict[str, Any]) -> Job:
        settings, name = self._folder.spec.dense_settings(seed), f"dense seed {seed}"
        self._steps[name] = self._step_count(settings)

        def finished(found: dict[str, Any]) -> None:
            self._note_machine(found, how)
            self._tidy_dense(seed)
            scores = read_report(self._folder.dense(seed))["scores"]["retrained"]
            self._ended(name, {metric: score["value"] for metric, score in scores.items()})
            self.write()

        return Job(name, _message(settings, self._folder.dense(seed), how), finished)

    def _note_machine(self, found: dict[str, Any], how: dict[str, Any]) -> None:
        self._folder.state["machine"] = {**found["environment"], **how}

    def _tidy_dense(self, seed: int) -> None:
        if not self._keep:
            self._folder.tidy_dense(seed)

    def _cell_job(self, cell: Cell, how: dict[str, Any]) -> Job:
        folder = self._folder
        dense = folder.dense_checkpoint(cell.seed)
        settings = folder.spec.cell_settings(cell, dense)
        self._steps[cell.name] = self._step_count(settings)

        def finished(found: dict[str, Any]) -> None:
            self._note_machine(found, how)
            result = result_of(folder, cell, self._task, found)
            folder.write_result(cell, result)
            if not self._keep:
                folder.tidy(cell)
            self._ended(cell.name, {m: s["value"] for m, s in result["metrics"].items()})
            self.write()

        message = _message(settings, folder.run(cell), how)
        if not folder.spec.trains(cell):
            message |= {"kind": "evaluate", "dense": str(dense)}
        ready: Callable[[], bool] = lambda: folder.has_dense(cell.seed)  # noqa: E731
        return Job(cell.name, message, finished, ready)

    def _timing_job(self, cell: Cell, rounds: int) -> Job:
        folder = self._folder
        dense = folder.dense_checkpoint(cell.seed)
        message = {
            "kind": "time",
            "dense": str(dense),
            "packed": str(folder.run(cell) / "packed"),
            "settings": folder.spec.cell_settings(cell, dense).to_dict(),
            "threads": folder.spec.latency_threads,
            "examples": _TIMED,
            "rounds": rounds,
        }

        def finished(timing: dict[str, Any]) -> None:
            folder.write_timing(cell, timing)
            if not self._keep:
                folder.tidy(cell)
            times = timing["milliseconds"]
            self._progress.say(
                f"{cell.configuration.name}: "
                + ", ".join(f"{name} {t['median']:.2f} ms" for name, t in times.items())
            )
            self._progress.advance()
            self.write()

        return Job(f"timing of {cell.name}", message, finished)

    # ---- progress

    def _step_count(self, settings: Settings) -> int:
        epoch = math.ceil(len(self._task.train) / settings.batch_size)
        lengths = settings.epochs_dense, settings.epochs_reweighted, settings.epochs_retrain
        return round(sum(lengths) * epoch)

    def _stepped(self, job: Job) -> None:
        if self._steps.get(job.name, 0) > 0:
            self._steps[job.name] -= 1
            self._progress.advance()

    def _ended(self, name: str, values: dict[str, float | None]) -> None:
        # A run that was resumed has taken some of its steps before.
        for _ in range(self._steps.pop(name, 0)):
            self._progress.advance()
        shown = ", ".join(
            f"{metric} {'undefined' if value is None else format(value, '.3f')}"
            for metric, value in values.items()
        )
        self._progress.say(f"{name}: {shown}")


def _message(settings: Settings, out: Path, how: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "train",
        "settings": settings.to_dict(),
        "out": str(out),
        "threads": how["threads"],
    }


def resume_command(out: str | os.PathLike[str]) -> str:
    """What continues the sweep in ``out``."""
    return shlex.join(["spatile", "sweep", "--resume", "--out", os.fspath(out)])
