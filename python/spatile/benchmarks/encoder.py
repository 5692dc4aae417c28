"""The packed encoder, dense and with 80 % of its tiles pruned, against whole models elsewhere."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import spatile as sp
from spatile.benchmarks.cases import AMX, AVX512, Case, Peer, Target
from spatile.benchmarks.engines import TOLERANCE, engines, torch_hidden
from spatile.benchmarks.models import MRPC_LENGTHS, Batch, bert, pruned_copy
from spatile.benchmarks.runner import Bench
from spatile.inference import Encoder
from spatile.sparsity import Plan

__all__ = ["measure"]

SPARSITY = 0.8
MODELS = ("BERT-base", "MiniLM-L6")
BATCHES = {
    # One text of CoLA and one of SST-2, on average.
    **{f"1 x {s} tokens": (s,) for s in (12, 25)},
    **{f"{b} x {s} tokens": (s,) * b for b in (1, 8) for s in (32, 128, 384)},
    "8 MRPC pairs": MRPC_LENGTHS[:8],
}
FORMS = ("dense", "80% of tiles pruned")
DTYPES = ("float32", "bfloat16")


def measure(bench: Bench) -> None:
    """Every model, form, dtype and batch. All of one batch are timed in one round of turns."""
    for name in MODELS:
        wanted = [
            (form, dtype)
            for form in FORMS
            for dtype in DTYPES
            if any(bench.wants(_case(name, form), batch, dtype) for batch in BATCHES)
        ]
        if wanted:
            _model(bench, name, wanted)


def _case(name: str, form: str) -> str:
    return f"encoder {name}, {form}"


def _model(bench: Bench, name: str, wanted: list[tuple[str, str]]) -> None:
    plan = Plan.uniform("tile", SPARSITY)
    dense = bert(name)
    models = {"dense": dense, FORMS[1]: pruned_copy(dense, plan)[0]}
    plans = {"dense": None, FORMS[1]: plan}
    with tempfile.TemporaryDirectory() as folder:
        ours = {}
        for form, dtype in wanted:
            if dtype == "bfloat16" and not bench.native_bfloat16:
                continue
            path = Path(folder, form)
            if not path.exists():
                models[form].save_pretrained(path)
            try:
                ours[form, dtype] = Encoder.load(path, plan=plans[form], compute=dtype)
            except NotImplementedError as error:
                bench.leave_out(f"{_case(name, form)}, {dtype}: not supported: {error}")
    peers = engines(bench, name, dense, sp.num_threads())
    for shape, lengths in BATCHES.items():
        batch = Batch(lengths)
        want = {form: batch.packed(torch_hidden(m, batch)()) for form, m in models.items()}
        cases = [
            Case(
                _case(name, form),
                shape,
                dtype,
                run=_forward(encoder, batch),
                expected=want[form],
                tolerance=TOLERANCE[dtype],
                target=_target(name, form, dtype, shape),
            )
            for (form, dtype), encoder in ours.items()
            if bench.wants(_case(name, form), shape, dtype)
        ]
        # The peers have the dense weights: none of them skips a zero, so it is their time for both.
        bench.compare(
            cases,
            [
                Peer(e.name, e.precision, e.bind(batch), want["dense"], TOLERANCE[e.precision],
                     batch.packed)
                for e in peers
            ],
        )  # fmt: skip


def _forward(encoder: Encoder, batch: Batch) -> Callable[[], Any]:
    return lambda: encoder.forward(batch.ids)[0]


def _target(name: str, form: str, dtype: str, shape: str) -> Target | None:
    tiers = AVX512 if dtype == "float32" else AMX
    if form == "dense":
        return Target(1.0, dtype, tiers)
    if (name, shape) == ("BERT-base", "1 x 128 tokens"):
        return Target(4.0, dtype if dtype == "float32" else None, tiers)
    return None
