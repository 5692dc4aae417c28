"""The frame that all benchmarks share: check first, then time both sides in turns, then the ratio.

A ratio is the peer's time over ours, so above 1 is better for us: that of the medians or that of
the minima, whichever is less. An at-most target (a share, an overhead) is shown as limit / value.
Turns alternate between the sides, and each begins with a run that is not counted: the other side's
threads may still be spinning, and its data is in the caches.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import spatile as sp

RUNS_PER_TURN = 3
LEAST_TURNS = 4


@dataclass(frozen=True)
class Timing:
    """Milliseconds."""

    minimum: float
    median: float


@dataclass(frozen=True)
class Result:
    """One line of a benchmark. ``ratio`` > 1: ours is better; ``target`` is the least ratio."""

    name: str
    dtype: str
    threads: int
    ours: Timing
    peer: Timing
    peer_name: str
    ratio: float
    error: float
    target: float | None


def options(description: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, nargs="+", default=[os.cpu_count() or 1])
    parser.add_argument("--seconds", type=float, default=2.0, help="at least, for each comparison")
    parser.add_argument("--tier", choices=sp.info()["cpu"]["tiers"], help="another CPU tier")
    parser.add_argument("--only", default="", help="run the lines whose name holds this")
    parser.add_argument("--json", type=Path, help="also write the results there")
    return parser.parse_args(arguments)


def processor() -> str:
    """The processor's own name for itself, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def versions() -> dict[str, str]:
    """What was measured with what."""
    found = {"spatile": sp.__version__, "python": platform.python_version()}
    for name in ("numpy", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def measure(
    ours: Callable[[], Any], peer: Callable[[], Any], *, seconds: float
) -> tuple[Timing, Timing]:
    """Both sides in turns for about ``seconds``."""
    times: tuple[list[float], list[float]] = ([], [])
    started = time.perf_counter()
    turns = 0
    while turns < LEAST_TURNS or time.perf_counter() - started < seconds:
        for side, kept in zip((ours, peer), times, strict=True):
            side()
            for _ in range(RUNS_PER_TURN):
                start = time.perf_counter()
                side()
                kept.append((time.perf_counter() - start) * 1e3)
        turns += 1
    first, second = (Timing(min(t), statistics.median(t)) for t in times)
    return first, second


class Bench:
    """One benchmark's run: prints its lines as they come."""

    def __init__(self, title: str, arguments: Sequence[str] | None = None) -> None:
        self.options = options(title, arguments)
        if self.options.tier:
            sp.device._set_cpu_tier(self.options.tier)
        self.results: list[Result] = []
        self.tier = sp.info()["cpu"]["tier"]
        told = ", ".join(f"{name} {number}" for name, number in versions().items())
        print(f"{title}\n{processor()}, {os.cpu_count()} cores, tier {self.tier}; {told}")
        print(f"{'':52} {'threads':>7} {'ours ms':>17} {'peer ms':>17}  ratio")
        print(f"{'':52} {'':7} {'min    median':>17} {'min    median':>17}")

    @property
    def thread_counts(self) -> list[int]:
        """The numbers of threads to measure at."""
        return list(self.options.threads)

    def use_threads(self, count: int) -> None:
        """Both sides on ``count`` threads."""
        import torch

        sp.set_num_threads(count)
        torch.set_num_threads(count)

    def wants(self, name: str) -> bool:
        """Whether a line of that name was asked for: ask before making its data."""
        return self.options.only in name

    def compare(
        self,
        name: str,
        ours: Callable[[], Any],
        peer: Callable[[], Any],
        *,
        reference: Any,
        tolerance: float,
        peer_name: str = "torch",
        dtype: str = "float32",
        target: float | None = None,
    ) -> Result:
        """Check ``ours()`` against ``reference`` (|error| / max |reference|), then time both.

        Raises AssertionError where the check fails: a wrong answer has no speed.
        """
        got, want = (np.asarray(a, np.float64) for a in (ours(), reference))
        assert got.shape == want.shape, f"{name}: {got.shape} is not {want.shape}"
        error = float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-30))
        assert error <= tolerance, f"{name}: error {error:.2e} is over {tolerance:.0e}"
        timings = measure(ours, peer, seconds=self.options.seconds)
        return self.record(name, *timings, error, peer_name=peer_name, dtype=dtype, target=target)

    def record(
        self,
        name: str,
        ours: Timing,
        peer: Timing,
        error: float,
        *,
        peer_name: str,
        dtype: str = "float32",
        target: float | None = None,
        ratio: float | None = None,
    ) -> Result:
        """Keep and print one line; ``ratio`` is the sides' where it isn't given."""
        if ratio is None:
            ratio = min(peer.median / ours.median, peer.minimum / ours.minimum)
        threads = sp.num_threads()
        result = Result(name, dtype, threads, ours, peer, peer_name, ratio, error, target)
        self.results.append(result)
        verdict = "" if target is None else f" (target {target:g}: {verdict_of(result)})"
        sides = " ".join(f"{t.minimum:8.3f} {t.median:8.3f}" for t in (ours, peer))
        print(
            f"{name + ', ' + dtype:52} {threads:7} {sides} {ratio:6.2f} × {peer_name}{verdict}",
            flush=True,
        )
        return result

    def finish(self) -> None:
        """Write the results where ``--json`` says."""
        if self.options.json:
            content = {
                "versions": versions(),
                "processor": processor(),
                "tier": self.tier,
                "results": [asdict(r) for r in self.results],
            }
            self.options.json.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def verdict_of(result: Result) -> str:
    """Whether the target was met."""
    return "met" if result.target is not None and result.ratio >= result.target else "missed"
