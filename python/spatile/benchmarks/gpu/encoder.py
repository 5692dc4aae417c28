"""The packed encoder in one call against torch's BERT in a CUDA graph. Weights are random."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spatile.benchmarks.cases import WrongAnswerError
from spatile.benchmarks.gpu.run import GpuBench, check
from spatile.benchmarks.models import Batch, bert, pruned_copy
from spatile.benchmarks.timing import Timing
from spatile.inference import Encoder
from spatile.sparsity import Plan

__all__ = ["SHAPES", "measure"]

SHAPES = ((1, 128), (1, 384), (8, 128), (32, 128))
SPARSITY = 0.8
DTYPE = "bfloat16"
TOLERANCE = 6e-2  # 12 layers in bfloat16, of the largest element
LIMIT_MS = 0.2  # BERT-base, 1 x 128 tokens, pruned: the first of the two limits
RUNS = 50


def measure(bench: GpuBench) -> None:
    """BERT-base, dense and with 80 % of its tiles pruned: ids in, hidden states out."""
    forms = ("dense", f"{SPARSITY:.0%} of tiles pruned")
    if not any(
        bench.wants(f"encoder BERT-base, {f}", _shape(*s), DTYPE) for f in forms for s in SHAPES
    ):
        return
    plan = Plan.uniform("tile", SPARSITY)
    dense = bert("BERT-base")
    models = {forms[0]: (dense, None), forms[1]: (pruned_copy(dense, plan)[0], plan)}
    for form, (model, used) in models.items():
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(Path(folder))
            ours = Encoder.load(folder, plan=used, compute=DTYPE, device="cuda")
        for sequences, tokens in SHAPES:
            if bench.wants(f"encoder BERT-base, {form}", _shape(sequences, tokens), DTYPE):
                _compare(bench, form, model, ours, sequences, tokens)


def _shape(sequences: int, tokens: int) -> str:
    return f"{sequences} x {tokens} tokens"


def _compare(
    bench: GpuBench, form: str, model: Any, ours: Encoder, sequences: int, tokens: int
) -> None:
    batch = Batch((tokens,) * sequences)
    title = (f"encoder BERT-base, {form}", _shape(sequences, tokens), DTYPE)
    inputs = {name: torch.from_numpy(x).cuda() for name, x in batch.padded.items()}
    with torch.inference_mode():
        exact = model.cuda()(**inputs).last_hidden_state.flatten(0, 1).cpu()
        halves = copy.deepcopy(model).to(torch.bfloat16)  # alive as long as the graph reads it
        peer, found = _graph(halves, inputs)
        peer()
        torch.cuda.synchronize()
    try:
        check(", ".join(title), ours.forward(batch.ids)[0], exact, TOLERANCE)
        check(f"{', '.join(title)}, torch", found.float().flatten(0, 1).cpu(), exact, TOLERANCE)
    except (RuntimeError, WrongAnswerError) as error:
        bench.leave_out(f"{', '.join(title)}: {error}")
        return
    # By the host's clock, until the result is there: the call is what a server pays for.
    own, theirs = _wall(lambda: ours.forward(batch.ids)), _wall(peer)
    rows = [bench.row(title, own, "torch, CUDA graph", theirs)]
    if form != "dense" and (sequences, tokens) == (1, 128):
        limit = Timing.of([[LIMIT_MS / 1e3]])
        rows.append(bench.row(title, own, "limit of 200 us", limit, target=1.0))
    bench.keep(rows)


def _graph(model: Any, inputs: dict[str, Any]) -> tuple[Callable[[], Any], Any]:
    """The model on these inputs, and what a replay writes; without the mask, which would only cost
    it a faster attention.
    """
    ids = inputs["input_ids"]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(input_ids=ids)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        found = model(input_ids=ids).last_hidden_state
    replay: Callable[[], Any] = graph.replay
    return replay, found


def _wall(run: Callable[[], Any]) -> Timing:
    times = []
    for _ in range(RUNS + 5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return Timing.of([[t] for t in times[5:]])
