"""Cascade token pruning: what the engine makes of the work that is saved, and what choosing costs.

The share of the saving that is realised is the speed-up over the reduction in multiply-adds, both
against the same encoder on all tokens, and both counted in the same runs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

import spatile as sp
from spatile import reference
from spatile.benchmarks.cases import Case, Peer, Target, WrongAnswerError
from spatile.benchmarks.models import Batch, bert, mostly_attention, pruned_copy
from spatile.benchmarks.runner import Bench
from spatile.benchmarks.timing import difference_of, overhead_of, speedup_of
from spatile.inference import Encoder
from spatile.sparsity import Plan, Schedule

__all__ = ["measure"]

Array = np.ndarray[Any, Any]

SPARSITY = 0.8
MODELS = ("BERT-base", "MiniLM-L6")
FORMS = ("dense", "80% of tiles pruned")
DTYPES = ("float32", "bfloat16")
SHAPES = {f"{b} x {s} tokens": (s,) * b for b in (1, 8) for s in (128, 384)}
AVERAGES = (0.5, 0.33)

REALISED = 0.9
SCHEDULE_TURNS = 9
KEEP_ALL_LIMIT = 0.02
SUMS_LIMIT = 0.10
SUMS_TURNS = 25

#: Of the encoder for the sums: so few tiles, heads, and the inputs that have next to no attention.
NEARLY_ALL, HEADS, WIDTH, SHORT = 0.95, 12, 64, 16

TOPK_SIZES = (128, 1024, 16_384, 131_072, 1_048_576)


def measure(bench: Bench) -> None:
    """The engine's own selection, then whole encoders."""
    for n in TOPK_SIZES:
        _topk(bench, n)
    _sums(bench)
    for name in MODELS:
        for form in FORMS:
            _model(bench, name, form)


# ---- topk ---------------------------------------------------------------------------------------


def _topk(bench: Bench, n: int) -> None:
    """Half of n normal numbers, against the peers' own order: none of them keeps the original."""
    if not bench.wants("topk, half of", f"{n} scores", "float32"):
        return
    scores = np.random.default_rng(0).standard_normal(n, dtype=np.float32)
    k = n // 2
    want = reference.topk(scores, k)

    def in_order(index: Any) -> tuple[Array, Array]:
        ordered = np.sort(np.asarray(index))
        return scores[ordered], ordered

    case = Case(
        "topk, half of",
        f"{n} scores",
        "float32",
        run=lambda: sp.topk(scores, k),
        expected=want,
        tolerance=0.0,
        target=Target(1.0, "float32"),
    )
    peers = [
        Peer(
            "numpy.argpartition",
            "float32",
            lambda: np.argpartition(scores, n - k),
            want,
            0.0,
            lambda found: in_order(found[n - k :]),
        )
    ]
    torch = bench.peer("torch")
    if torch is not None:
        tensor = torch.from_numpy(scores)
        peers.append(
            Peer(
                "torch.topk",
                "float32",
                lambda: torch.topk(tensor, k),
                want,
                0.0,
                lambda found: in_order(found.indices),
            )
        )
    bench.compare([case], peers)


# ---- encoders -----------------------------------------------------------------------------------


def _encoders(
    bench: Bench, titles: Collection[str], build: Callable[[], Any], plan: Plan | None
) -> Iterator[tuple[str, str, Encoder]]:
    """Shape, dtype and the model's encoder in it, where one of the titles is wanted.

    The model is built and pruned only where one is, and each dtype loads it once for all shapes.
    """
    wanted = [
        (shape, dtype)
        for dtype in DTYPES
        for shape in SHAPES
        if any(bench.wants(title, shape, dtype) for title in titles)
        and (dtype != "bfloat16" or bench.native_bfloat16)
    ]
    if not wanted:
        return
    model = build()
    if plan is not None:
        model = pruned_copy(model, plan)[0]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for dtype, cases in groupby(wanted, key=itemgetter(1)):
            encoder = Encoder.load(Path(folder), plan=plan, compute=dtype)
            for shape, _ in cases:
                yield shape, dtype, encoder


def _with(
    encoder: Encoder,
    tokens: Schedule | None,
    ids: list[list[int]],
    heads: Schedule | None = None,
) -> Callable[[], Any]:
    def run() -> Any:
        encoder.tokens, encoder.heads = tokens, heads
        return encoder.run(ids)

    return run


# ---- importance sums ----------------------------------------------------------------------------


def _sums(bench: Bench) -> None:
    """What both kinds of sums add to the engine's attention, on an encoder that does little else.

    Its attention's own time is what it takes more than on as many tokens in inputs of 16.
    """
    title = f"tokens, importance sums, {HEADS} heads of {WIDTH}"
    plan = Plan.uniform("tile", NEARLY_ALL)
    build = partial(mostly_attention, HEADS, WIDTH)
    for shape, dtype, encoder in _encoders(bench, [title], build, plan):
        _sums_of(bench, (title, shape, dtype), encoder)


def _sums_of(bench: Bench, title: tuple[str, str, str], encoder: Encoder) -> None:
    lengths = SHAPES[title[1]]
    n_layers, length = encoder.architecture.n_layers, lengths[0]
    # A token and a head of each input go before the last layer: all others have summed for it.
    before_last = [1.0] * (n_layers - 1)
    one_less = Schedule.per_layer([*before_last, (length - 1) / length])
    one_head_less = Schedule.per_layer([*before_last, (HEADS - 1) / HEADS])
    ids = Batch(lengths).ids
    short = Batch((SHORT,) * (sum(lengths) // SHORT)).ids
    _check(title[0], encoder, one_less, ids)
    sides = [
        _with(encoder, None, ids),
        _with(encoder, one_less, ids, one_head_less),
        _with(encoder, None, short),
    ]
    plain, summed, rest = bench.interleave(", ".join(title), sides, SUMS_TURNS)
    attention = difference_of(plain, rest).value * length / (length - SHORT)
    share = difference_of(summed, plain) * (n_layers / (n_layers - 1) / attention)
    peer: dict[str, Any] = {"ours": summed, "peer": "spatile without sums", "theirs": plain}
    bench.keep_at_most(title, share, SUMS_LIMIT, **peer)


# ---- whole encoders -----------------------------------------------------------------------------


def _titles(name: str, form: str) -> dict[str, str]:
    base = f"tokens, {name}, {form}"
    titles = {f"{average:g}": f"{base}, keep {average:g}" for average in AVERAGES}
    return {**titles, "1": f"{base}, keep 1"}


def _model(bench: Bench, name: str, form: str) -> None:
    titles = _titles(name, form)
    plan = None if form == "dense" else Plan.uniform("tile", SPARSITY)
    for shape, dtype, encoder in _encoders(bench, titles.values(), partial(bert, name), plan):
        _shape(bench, titles, shape, dtype, encoder)


def _shape(bench: Bench, titles: dict[str, str], shape: str, dtype: str, encoder: Encoder) -> None:
    """All schedules on one batch, in one round of turns with the same run on all tokens."""
    lengths = SHAPES[shape]
    schedules = {f"{average:g}": Schedule.linear(average) for average in AVERAGES}
    schedules["1"] = Schedule.linear(1.0)
    chosen = {k: s for k, s in schedules.items() if bench.wants(titles[k], shape, dtype)}
    ids = Batch(lengths).ids
    runs = {key: _with(encoder, schedule, ids) for key, schedule in chosen.items()}
    whole = _with(encoder, None, ids)
    for key in chosen:
        _check(titles[key], encoder, chosen[key], ids)
    name = f"{titles['1']}, {shape}, {dtype}"
    timings = bench.interleave(name, [whole, *runs.values()], SCHEDULE_TURNS)
    base, costs = timings[0], {key: run().cost for key, run in runs.items()}
    dense = whole().cost.actual.multiply_adds
    for key, timing in zip(runs, timings[1:], strict=True):
        title = (titles[key], shape, dtype)
        peer: dict[str, Any] = {"ours": timing, "peer": "spatile on all tokens", "theirs": base}
        if key == "1":
            bench.keep_at_most(title, overhead_of(timing, base), KEEP_ALL_LIMIT, **peer)
        else:
            reduction = dense / costs[key].actual.multiply_adds
            faster = speedup_of(timing, base)
            note = f"{faster.value:.2f}x faster, {reduction:.2f}x less to do"
            bench.keep_at_least(title, faster * (1 / reduction), REALISED, note=note, **peer)


def _check(title: str, encoder: Encoder, schedule: Schedule, ids: list[list[int]]) -> None:
    """The tokens kept and their hidden states are those of each input by itself, bit for bit."""
    encoder.tokens = schedule
    other = Batch((37, 5)).ids  # the batch's own, and among others
    together = encoder.run([other[0], *ids, other[1]])
    for i, row in enumerate(ids):
        alone = encoder.run([row])
        part = slice(together.offsets[i + 1], together.offsets[i + 2])
        same = np.array_equal(together.positions[part], alone.positions)
        if not same or not np.array_equal(together.hidden[part], alone.hidden):
            raise WrongAnswerError(f"{title}: input {i} by itself differs from it in a batch")
