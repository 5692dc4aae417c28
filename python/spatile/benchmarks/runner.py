"""One run of `spatile bench`: which benchmarks, on what, and what becomes of their rows."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import spatile as sp
from spatile.benchmarks import PEERS, console
from spatile.benchmarks.cases import NATIVE_BFLOAT16, Case, Peer, check
from spatile.benchmarks.machine import processor, versions
from spatile.benchmarks.table import Row, with_target, write_rows
from spatile.benchmarks.timing import LEAST_TURNS, Estimate, Timing, interleave, ratio_of

__all__ = ["Bench", "Options", "run"]


@dataclass(frozen=True)
class Options:
    """``seconds`` is the least time for each side of a comparison; ``tier`` None: the best."""

    threads: tuple[int, ...]
    seconds: float = 1.0
    tier: str | None = None
    only: str = ""
    peers: tuple[str, ...] = PEERS
    json: Path | None = None


class Bench:
    """What a benchmark's module is given: it asks :meth:`wants` before it makes data, hands over
    cases and peers to :meth:`compare`, and says what it leaves out to :meth:`leave_out`.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.rows: list[Row] = []
        self.tier: str = sp.info()["cpu"]["tier"]
        self._left_out: set[str] = set()
        self._save()

    # ---- what to measure ------------------------------------------------------------------------

    def wants(self, *parts: str) -> bool:
        """Whether a case of that title was asked for by ``--only``."""
        return self.options.only in ", ".join(parts)

    def peer(self, name: str) -> Any | None:
        """The peer's package; None where it is absent (which is said) or was not asked for."""
        if name not in self.options.peers:
            return None
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            self.leave_out(f"{name}: absent, {error.name or name} is not installed")
            return None

    @property
    def native_bfloat16(self) -> bool:
        """Whether the tier in use multiplies bfloat16; where not, it is said."""
        if self.tier not in NATIVE_BFLOAT16:
            self.leave_out(f"bfloat16: no case, tier {self.tier} has no bfloat16 products")
        return self.tier in NATIVE_BFLOAT16

    def leave_out(self, why: str) -> None:
        """Print once why something is not measured."""
        if why not in self._left_out:
            self._left_out.add(why)
            console.line(f"  ({why})")

    # ---- measuring ------------------------------------------------------------------------------

    def compare(self, cases: Sequence[Case], peers: Sequence[Peer]) -> list[Row]:
        """Check all sides, time them in turns, keep a row for each case and peer.

        A case whose run is not supported here (NotImplementedError) is left out, with the reason.
        Raises WrongAnswerError, before anything is timed, where a side's result is not its
        reference.
        """
        chosen = [case for case in cases if self.wants(case.title) and self._supported(case)]
        if not chosen or not peers:
            return []
        for peer in peers:
            title = f"{peer.name}, {chosen[0].case}, {chosen[0].shape}"
            check(title, peer.result(peer.run()), peer.expected, peer.tolerance)
        sides = [*(case.run for case in chosen), *(peer.run for peer in peers)]
        timings = self.interleave(f"{chosen[0].case}, {chosen[0].shape}", sides)
        kept: list[Row] = []
        for case, ours in zip(chosen, timings, strict=False):
            kept += self._rows_of(case, ours, peers, timings[len(chosen) :])
        self.keep(kept)
        return kept

    def interleave(
        self, title: str, sides: Sequence[Callable[[], object]], least_turns: int = LEAST_TURNS
    ) -> list[Timing]:
        """The sides in turns, each for as long as ``--seconds`` says."""
        console.progress(f"measuring {title}")
        return interleave(sides, seconds=self.options.seconds, least_turns=least_turns)

    def _supported(self, case: Case) -> bool:
        console.progress(f"checking {case.title}")
        try:
            found = case.run()
        except NotImplementedError as error:
            self.leave_out(f"{case.title}: not supported: {error}")
            return False
        check(case.title, found, case.expected, case.tolerance)
        return True

    def _rows_of(
        self, case: Case, ours: Timing, peers: Sequence[Peer], theirs: Sequence[Timing]
    ) -> list[Row]:
        rows = [
            self._row((case.case, case.shape, case.dtype), ours, peer.name, timing)
            for peer, timing in zip(peers, theirs, strict=True)
        ]
        speed = None if case.flop is None else case.flop / ours.median / 1e6
        rows = with_target(rows, [peer.precision for peer in peers], case.target)
        for row in rows:
            console.line(console.row_text(row, speed))
        return rows

    def keep_at_most(
        self,
        title: tuple[str, str, str],
        found: Estimate,
        limit: float,
        *,
        ours: Timing,
        peer: str,
        theirs: Timing,
    ) -> Row:
        """Keep a row (case, shape, dtype) whose target is ``found`` ≤ ``limit``.

        Its ratio is limit / value, at most 100: a share can come out as nothing, or less. Neither
        met nor missed where the interval holds the limit.
        """
        least = limit / 100
        row = self._row(title, ours, peer, theirs, ratio=limit / max(found.value, least))
        met = _settled(found.high <= limit, found.low > limit)
        row = replace(row, target=1.0, met=met, interval=_interval(found))
        span = f"{found.low:.2%} to {found.high:.2%}"
        console.line(
            f"{console.row_text(row)}  [{found.value:.2%}, {span}, of at most {limit:.0%}]"
        )
        self.keep([row])
        return row

    def keep_at_least(
        self,
        title: tuple[str, str, str],
        found: Estimate,
        least: float,
        *,
        note: str,
        ours: Timing,
        peer: str,
        theirs: Timing,
    ) -> Row:
        """Keep a row (case, shape, dtype) whose ratio is ``found``, wanted to be ``least``.

        Neither met nor missed where the interval holds ``least``.
        """
        row = self._row(title, ours, peer, theirs, ratio=found.value)
        met = _settled(found.low >= least, found.high < least)
        row = replace(row, target=least, met=met, interval=_interval(found))
        console.line(f"{console.row_text(row)}  [{found.low:.2f} to {found.high:.2f}; {note}]")
        self.keep([row])
        return row

    def _row(
        self,
        title: tuple[str, str, str],
        ours: Timing,
        peer: str,
        theirs: Timing,
        *,
        ratio: float | None = None,
    ) -> Row:
        case, shape, dtype = title
        return Row(
            case=case,
            shape=shape,
            dtype=dtype,
            tier=self.tier,
            threads=sp.num_threads(),
            ours_ms=_significant(ours.median),
            peer=peer,
            peer_ms=_significant(theirs.median),
            ratio=_significant(ratio_of(ours, theirs) if ratio is None else ratio),
        )

    def keep(self, rows: Sequence[Row]) -> None:
        """Add rows to those measured, and write them all."""
        self.rows += rows
        self._save()

    def _save(self) -> None:
        if self.options.json is not None:
            write_rows(self.options.json, self.rows)


def _significant(x: float) -> float:
    """Five digits."""
    return float(f"{x:.5g}")


def _interval(found: Estimate) -> tuple[float, float]:
    return _significant(found.low), _significant(found.high)


def _settled(met: bool, missed: bool) -> bool | None:
    return met if met or missed else None


@contextmanager
def _as_before() -> Iterator[None]:
    """Threads and tier as they were, afterwards."""
    threads, tier = sp.num_threads(), sp.info()["cpu"]["tier"]
    torch = _torch()
    torch_threads = None if torch is None else torch.get_num_threads()
    try:
        yield
    finally:
        sp.set_num_threads(threads)
        sp.device._set_cpu_tier(tier)
        if torch is not None:
            torch.set_num_threads(torch_threads)


def _torch() -> Any | None:
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError:
        return None


def _use_threads(count: int) -> None:
    """Ours and torch's pool; the other peers are told when their models are made."""
    sp.set_num_threads(count)
    torch = _torch()
    if torch is not None:
        torch.set_num_threads(count)


def _measure(name: str, bench: Bench) -> None:
    try:
        module = importlib.import_module(f"spatile.benchmarks.{name.replace('-', '_')}")
        module.measure(bench)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "spatile":
            raise
        bench.leave_out(f'{name}: needs {missing}, which is absent: pip install "spatile[bench]"')


def run(names: Sequence[str], options: Options) -> list[Row]:
    """Measure the benchmarks ``names`` and print their table; returns its rows.

    Raises WrongAnswerError where a side's result is wrong, OSError where the file can't be written.
    What was measured until then, or until Ctrl-C, is in the file.
    """
    with _as_before():
        if options.tier is not None:
            sp.device._set_cpu_tier(options.tier)
        bench = Bench(options)
        told = ", ".join(f"{name} {number}" for name, number in versions().items())
        console.line(f"{processor()}, {os.cpu_count()} cores, tier {bench.tier}; {told}")
        if options.tier is not None:
            console.line("The tier is ours alone: peers use what instructions they like.")
        for name in names:
            for threads in options.threads:
                _use_threads(threads)
                console.line("")
                console.line(console.heading(name, threads))
                _measure(name, bench)
    console.line("")
    for text in console.summary(bench.rows):
        console.line(text)
    return bench.rows
