"""Timing several sides in turns, and the ratios that come of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Timing", "interleave", "overhead_of", "ratio_of", "sum_of"]

RUNS_PER_TURN = 3
LEAST_TURNS = 4

# A run this long (seconds) doesn't notice what ran before it: its turn is that one run.
LONG = 0.1


@dataclass(frozen=True)
class Timing:
    """Milliseconds."""

    minimum: float
    median: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Of measured seconds.

        >>> Timing.of([0.25, 0.5, 1.0])
        Timing(minimum=250.0, median=500.0)
        """
        return cls(min(seconds) * 1e3, statistics.median(seconds) * 1e3)


def ratio_of(ours: Timing, peer: Timing) -> float:
    """The peer's time over ours, by the medians or by the minima, whichever is less.

    >>> ratio_of(Timing(1.0, 2.0), Timing(3.0, 4.0))
    2.0
    """
    return min(peer.median / ours.median, peer.minimum / ours.minimum)


def overhead_of(whole: Timing, base: Timing) -> float:
    """What ``whole`` takes beyond ``base``, as a fraction: by medians or minima, whichever is more.

    >>> overhead_of(Timing(1.0, 3.0), Timing(1.0, 2.0))
    0.5
    """
    return max(whole.median / base.median, whole.minimum / base.minimum) - 1.0


def sum_of(parts: Iterable[Timing]) -> Timing:
    """One after another.

    >>> sum_of([Timing(1.0, 2.0), Timing(3.0, 5.0)])
    Timing(minimum=4.0, median=7.0)
    """
    timings = list(parts)
    return Timing(sum(t.minimum for t in timings), sum(t.median for t in timings))


def _clock(side: Callable[[], object]) -> float:
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def _turn(side: Callable[[], object], times: list[float]) -> None:
    # The first run finds the other sides' data in the caches and their threads still spinning.
    first = _clock(side)
    if first >= LONG:
        times.append(first)
    else:
        times += [_clock(side) for _ in range(RUNS_PER_TURN)]


def interleave(sides: Sequence[Callable[[], object]], *, seconds: float) -> list[Timing]:
    """All sides in turns, for about ``seconds`` of each and at least ``LEAST_TURNS`` turns.

    The first turn of each side warms up and is not counted. Who begins moves on by one from round
    to round, so that nobody always follows the same neighbour.
    """
    times: list[list[float]] = [[] for _ in sides]
    for side in sides:
        _turn(side, [])
    started = time.perf_counter()
    turns = 0
    while turns < LEAST_TURNS or time.perf_counter() - started < seconds * len(sides):
        for i in range(len(sides)):
            chosen = (i + turns) % len(sides)
            _turn(sides[chosen], times[chosen])
        turns += 1
    return [Timing.of(t) for t in times]
