"""Sides timed in turns by CUDA events, each as a CUDA graph of several runs where that can be."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spatile.benchmarks.timing import Timing

__all__ = ["Side", "time_in_turns"]

# What is between two events takes at least this long: their own error is about a microsecond.
LEAST_MS = 0.5
MOST_RUNS = 200
LEAST_TURNS, MOST_TURNS = 9, 60


@dataclass(frozen=True)
class Side:
    """``launch`` runs the side ``runs`` times; ``captured`` says whether as a graph."""

    launch: Callable[[], object]
    runs: int
    captured: bool

    @classmethod
    def of(cls, run: Callable[[], object]) -> Side:
        """A side made ready: warmed up, measured roughly, and captured if it lets itself be."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # what is made at the first call is not to be captured
                run()
            once = _milliseconds(run)
        torch.cuda.synchronize()
        runs = max(1, min(MOST_RUNS, round(LEAST_MS / max(once, 1e-3))))
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="relaxed"):
                for _ in range(runs):
                    run()
        except RuntimeError:
            torch.cuda.synchronize()
            return cls(_repeat(run, runs), runs, captured=False)
        return cls(graph.replay, runs, captured=True)

    def milliseconds(self) -> float:
        """Of one run, as the GPU's own clock measured it."""
        return _milliseconds(self.launch) / self.runs


def _repeat(run: Callable[[], object], runs: int) -> Callable[[], object]:
    def launch() -> None:
        for _ in range(runs):
            run()

    return launch


def _milliseconds(launch: Callable[[], object]) -> float:
    start: Any = torch.cuda.Event(enable_timing=True)
    end: Any = torch.cuda.Event(enable_timing=True)
    start.record()
    launch()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def time_in_turns(sides: Sequence[Side], *, seconds: float) -> list[Timing]:
    """Of each side. Who begins moves on by one from round to round."""
    times: list[list[float]] = [[] for _ in sides]
    for side in sides:
        side.milliseconds()
    started, turns = time.perf_counter(), 0
    while turns < LEAST_TURNS or (
        turns < MOST_TURNS and time.perf_counter() - started < seconds * len(sides)
    ):
        for i in range(len(sides)):
            chosen = (i + turns) % len(sides)
            times[chosen].append(sides[chosen].milliseconds())
        turns += 1
    return [Timing.of([[ms / 1e3] for ms in t]) for t in times]
