"""Timing several sides in turns, and the ratios that come of it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "Estimate",
    "Timing",
    "difference_of",
    "interleave",
    "overhead_of",
    "ratio_of",
    "share_of",
    "speedup_of",
    "sum_of",
]

RUNS_PER_TURN = 3
LEAST_TURNS = 4

# A run this long (seconds) hardly notices what ran before it: its turn is that one run.
LONG = 0.1


@dataclass(frozen=True)
class Timing:
    """Milliseconds; ``turns`` holds the least of each turn, in the order of the rounds."""

    minimum: float
    median: float
    turns: tuple[float, ...]

    @classmethod
    def of(cls, turns: Sequence[Sequence[float]]) -> Timing:
        """Of the seconds measured in each turn.

        >>> Timing.of([[0.25, 0.5], [1.0]])
        Timing(minimum=250.0, median=500.0, turns=(250.0, 1000.0))
        """
        times = [1e3 * t for turn in turns for t in turn]
        return cls(min(times), statistics.median(times), tuple(1e3 * min(t) for t in turns))


def ratio_of(ours: Timing, peer: Timing) -> float:
    """The peer's time over ours, by the medians or by the minima, whichever is less.

    >>> ratio_of(Timing.of([[1.0], [3.0]]), Timing.of([[3.0], [5.0]]))
    2.0
    """
    return min(peer.median / ours.median, peer.minimum / ours.minimum)


@dataclass(frozen=True)
class Estimate:
    """A median over rounds and its 95 % interval; of fewer than six rounds, all that was found."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, rounds: Iterable[float]) -> Estimate:
        """By order statistics, which ask nothing of how the values are distributed.

        >>> Estimate.of([3.0, 1.0, 2.0])
        Estimate(value=2.0, low=1.0, high=3.0)
        >>> Estimate.of(float(i) for i in range(25))
        Estimate(value=12.0, low=7.0, high=17.0)
        """
        values = sorted(rounds)
        n = len(values)
        below = max(0, math.floor((n - 1 - 1.96 * math.sqrt(n)) / 2))
        return cls(statistics.median(values), values[below], values[n - 1 - below])

    def __mul__(self, factor: float) -> Estimate:
        return Estimate(self.value * factor, self.low * factor, self.high * factor)


def overhead_of(whole: Timing, base: Timing) -> Estimate:
    """What ``whole`` takes beyond ``base``, as a fraction: the median over rounds.

    What a machine does besides for longer than a round slows both sides of it alike, and may be
    many times a small overhead.

    >>> overhead_of(Timing.of([[1.5], [3.0], [8.0]]), Timing.of([[1.0], [2.0], [4.0]])).value
    0.5
    """
    pairs = zip(whole.turns, base.turns, strict=True)
    return Estimate.of(ours / theirs - 1.0 for ours, theirs in pairs)


def share_of(part: Timing, whole: Timing) -> Estimate:
    """The fraction of ``whole`` that ``part`` is, likewise.

    >>> share_of(Timing.of([[1.0], [2.0], [1.0]]), Timing.of([[2.0], [5.0], [4.0]])).value
    0.4
    """
    pairs = zip(part.turns, whole.turns, strict=True)
    return Estimate.of(ours / all_of_it for ours, all_of_it in pairs)


def speedup_of(timing: Timing, base: Timing) -> Estimate:
    """How many times faster than ``base``, likewise.

    >>> speedup_of(Timing.of([[1.0], [2.0], [1.0]]), Timing.of([[2.0], [3.0], [5.0]])).value
    2.0
    """
    pairs = zip(timing.turns, base.turns, strict=True)
    return Estimate.of(theirs / ours for ours, theirs in pairs)


def difference_of(whole: Timing, base: Timing) -> Estimate:
    """Milliseconds that ``whole`` takes beyond ``base``, likewise.

    >>> difference_of(Timing.of([[1.5], [2.5], [8.0]]), Timing.of([[1.0], [2.0], [4.0]])).value
    500.0
    """
    pairs = zip(whole.turns, base.turns, strict=True)
    return Estimate.of(ours - theirs for ours, theirs in pairs)


def sum_of(parts: Sequence[Timing]) -> Timing:
    """One after another.

    >>> sum_of([Timing.of([[1.0]]), Timing.of([[3.0]])])
    Timing(minimum=4000.0, median=4000.0, turns=(4000.0,))
    """
    rounds = zip(*(t.turns for t in parts), strict=True)
    return Timing(
        sum(t.minimum for t in parts),
        sum(t.median for t in parts),
        tuple(sum(of_round) for of_round in rounds),
    )


def _clock(side: Callable[[], object]) -> float:
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def _turn(side: Callable[[], object], runs: int) -> list[float]:
    # The first run finds the other sides' data in the caches and their threads still spinning.
    first = _clock(side)
    return [first] if first >= LONG else [_clock(side) for _ in range(runs)]


def interleave(
    sides: Sequence[Callable[[], object]], *, seconds: float, least_turns: int = LEAST_TURNS
) -> list[Timing]:
    """All sides in turns, for about ``seconds`` of each and at least ``least_turns`` turns.

    The first turn of each side warms up and is not counted. Who begins moves on by one from round
    to round, so that nobody always follows the same neighbour. Where one side is so long that it
    runs once a turn, all are counted once: the least of several would be less by chance.
    """
    turns: list[list[list[float]]] = [[] for _ in sides]
    longest = max(_clock(side) for side in sides)
    runs = 1 if longest >= LONG else RUNS_PER_TURN
    started = time.perf_counter()
    done = 0
    while done < least_turns or time.perf_counter() - started < seconds * len(sides):
        for i in range(len(sides)):
            chosen = (i + done) % len(sides)
            turns[chosen].append(_turn(sides[chosen], runs))
        done += 1
    return [Timing.of(t) for t in turns]
