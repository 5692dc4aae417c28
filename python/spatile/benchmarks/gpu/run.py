"""One run on a GPU: cases and peers checked, timed in turns, and kept as rows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from spatile.benchmarks import console
from spatile.benchmarks.cases import Case, Peer, WrongAnswerError
from spatile.benchmarks.gpu.timing import Side, time_in_turns
from spatile.benchmarks.machine import versions
from spatile.benchmarks.table import Row, with_target
from spatile.benchmarks.timing import Timing, ratio_of
from spatile.sparsity import write_atomically

__all__ = ["GpuBench", "check"]


def check(title: str, found: Any, expected: Any, tolerance: float) -> None:
    """As :func:`spatile.benchmarks.cases.check`, on tensors and without leaving their device."""
    pairs = zip(_tensors(found), _tensors(expected), strict=True)
    for got, want in pairs:
        want = want.to(got.device)
        if got.shape != want.shape:
            raise WrongAnswerError(
                f"{title}: result's shape is {tuple(got.shape)}, expected {tuple(want.shape)}"
            )
        largest = max(float(want.double().abs().max()), 1e-30)
        error = float((got.double() - want.double()).abs().max()) / largest
        if not error <= tolerance:  # NaN too
            raise WrongAnswerError(f"{title}: error {error:.2e}, expected at most {tolerance:.0e}")


def _tensors(x: Any) -> list[Any]:
    parts = x if isinstance(x, (tuple, list)) else [x]
    return [torch.as_tensor(part) for part in parts]


@dataclass
class GpuBench:
    """What a module is given. Once ``budget`` seconds are over, cases are left out."""

    only: str = ""
    seconds: float = 0.1
    budget: float = 300.0
    json: Path | None = None
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def wants(self, *parts: str) -> bool:
        """Whether a case of that title was asked for and there is time for it."""
        title = ", ".join(parts)
        if self.only not in title:
            return False
        if time.perf_counter() - self.started > self.budget:
            self.leave_out(f"{title}: the {self.budget:.0f} seconds are over")
            return False
        return True

    def leave_out(self, why: str) -> None:
        """Say why something is not measured, and keep that."""
        console.line(f"  ({why})")
        self.left_out.append(why)
        self.save()

    def compare(self, case: Case, peers: Sequence[Peer]) -> None:
        """Check all sides, time them in turns, keep a row for each peer.

        A wrong answer is left out with its error, and so is a peer that refuses the shape: on a GPU
        the next case is worth measuring all the same.
        """
        try:
            check(case.title, case.run(), case.expected, case.tolerance)
        except (NotImplementedError, RuntimeError, WrongAnswerError) as error:
            self.leave_out(f"{case.title}: {error}")
            return
        there: list[Peer] = []
        for peer in peers:
            try:
                found = peer.result(peer.run())
                check(f"{peer.name}, {case.title}", found, peer.expected, peer.tolerance)
                there.append(peer)
            except (RuntimeError, WrongAnswerError) as error:
                self.leave_out(f"{peer.name}: {str(error).splitlines()[0][:120]}")
        if not there:
            return
        sides = [Side.of(run) for run in (case.run, *(peer.run for peer in there))]
        if not sides[0].captured:
            self.leave_out(f"{case.title}: ours is no graph, its launches are timed too")
        ours, *theirs = time_in_turns(sides, seconds=self.seconds)
        rows = [
            self.row((case.case, case.shape, case.dtype), ours, peer.name, timing)
            for peer, timing in zip(there, theirs, strict=True)
        ]
        self.keep(with_target(rows, [peer.precision for peer in there], case.target), case.flop)

    def row(
        self,
        title: tuple[str, str, str],
        ours: Timing,
        peer: str,
        theirs: Timing,
        *,
        ratio: float | None = None,
        target: float | None = None,
    ) -> Row:
        """A row; ``ratio`` where it is not the peer's time over ours."""
        case, shape, dtype = title
        row = Row(
            case=case,
            shape=shape,
            dtype=dtype,
            tier=torch.cuda.get_device_name(),
            threads=1,
            ours_ms=float(f"{ours.median:.5g}"),
            peer=peer,
            peer_ms=float(f"{theirs.median:.5g}"),
            ratio=float(f"{ratio_of(ours, theirs) if ratio is None else ratio:.5g}"),
        )
        if target is None:
            return row
        return replace(row, target=target, met=row.ratio >= target)

    def keep(self, rows: Sequence[Row], flop: float | None = None) -> None:
        """Print rows and write all."""
        for row in rows:
            speed = None if flop is None else flop / row.ours_ms / 1e6
            console.line(console.row_text(row, speed))
        self.rows += rows
        self.save()

    def save(self) -> None:
        """The machine, the rows so far and what was left out, as JSON."""
        if self.json is None:
            return
        told = {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
            "cuda": torch.version.cuda,
            "versions": versions(),
            "seconds": round(time.perf_counter() - self.started, 1),
            "rows": [asdict(row) for row in self.rows],
            "left_out": self.left_out,
        }
        write_atomically(
            self.json, (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode()
        )


Measure = Callable[[GpuBench], None]
