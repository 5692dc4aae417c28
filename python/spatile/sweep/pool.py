"""Running jobs in worker processes, several at once, until all are through or Ctrl-C comes."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Job", "Pool"]


@dataclass
class Job:
    """A message for a worker, and what to do about its end.

    ``ready`` says whether what the job needs is there. ``finished`` gets the worker's result.
    """

    name: str
    message: dict[str, Any]
    finished: Callable[[Any], None]
    ready: Callable[[], bool] = field(default=lambda: True)


class _Worker:
    def __init__(self, events: queue.Queue[Any], threads: int, lock: int) -> None:
        self.job: Job | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        # In a session of its own a worker doesn't get the terminal's Ctrl-C, but ours, once.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "spatile.sweep.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            start_new_session=True,
            pass_fds=(lock,),
        )
        threading.Thread(target=self._read, args=(events,), daemon=True).start()

    def give(self, job: Job) -> None:
        self.job = job
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(job.message).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # It died; its end is told by the thread that reads from it.

    def _read(self, events: queue.Queue[Any]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            events.put((self, json.loads(line)))
        events.put((self, None))

    def last_words(self) -> str:
        code = self.process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"its process ended with {code}" + (f": {lines[-1].strip()}" if lines else "")

    def close(self) -> None:
        assert self.process.stdin is not None
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self._log.close()


class Pool:
    """``size`` workers of ``threads`` threads each. Use it in a ``with`` statement.

    ``lock`` is a descriptor that workers hold open; ``stepped(job)`` is called for each step of
    training that one took.
    """

    def __init__(self, size: int, threads: int, lock: int, stepped: Callable[[Job], None]) -> None:
        self._size, self._threads, self._lock, self._stepped = size, threads, lock, stepped
        self._events: queue.Queue[Any] = queue.Queue()
        self._workers: list[_Worker] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.close()

    def run(self, jobs: Sequence[Job]) -> dict[str, str]:
        """Do ``jobs``, in order as far as they are ready; returns what failed: name → reason.

        A job whose ``ready`` can't come true any more, because what it needs has failed, is left
        out. Raises KeyboardInterrupt after Ctrl-C, once every worker has saved what it was at; a
        second Ctrl-C doesn't wait for that.
        """
        waiting = list(jobs)
        failed: dict[str, str] = {}
        try:
            while True:
                self._hand_out(waiting)
                busy = [w for w in self._workers if w.job is not None]
                if not busy:
                    return failed
                worker, message = self._events.get()
                self._take(worker, message, failed)
        except KeyboardInterrupt:
            self._stop()
            raise

    def _hand_out(self, waiting: list[Job]) -> None:
        while True:
            idle = next((w for w in self._workers if w.job is None), None)
            if idle is None and len(self._workers) >= self._size:
                return
            job = next((job for job in waiting if job.ready()), None)
            if job is None:
                return
            if idle is None:
                idle = _Worker(self._events, self._threads, self._lock)
                self._workers.append(idle)
            waiting.remove(job)
            idle.give(job)

    def _take(self, worker: _Worker, message: Any, failed: dict[str, str]) -> None:
        job = worker.job
        if message is None:
            self._workers.remove(worker)
            if job is not None:
                failed[job.name] = worker.last_words()
            worker.close()
        elif job is None:
            pass
        elif message["event"] == "step":
            self._stepped(job)
        else:
            worker.job = None
            if message["event"] == "done":
                try:
                    job.finished(message["result"])
                except Exception as error:
                    failed[job.name] = str(error) or type(error).__name__
            elif message["event"] == "failed":
                failed[job.name] = message["error"]
            else:
                raise KeyboardInterrupt

    def _stop(self) -> None:
        """Have all workers save and stop; those that finish meanwhile count as finished."""
        busy = {id(w): w for w in self._workers if w.job is not None}
        for worker in busy.values():
            worker.process.send_signal(signal.SIGINT)
        while busy:
            worker, message = self._events.get()
            if message is None or message["event"] != "step":
                busy.pop(id(worker), None)
                if message is not None and message["event"] == "done" and worker.job is not None:
                    worker.job.finished(message["result"])
