"""`sp.attention` forward against torch's scaled_dot_product_attention, which skips no padding."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

import spatile as sp
from spatile import reference
from spatile.benchmarks.cases import AMX, AVX512, Case, Peer, Target, check
from spatile.benchmarks.models import MRPC_LENGTHS
from spatile.benchmarks.runner import Bench
from spatile.benchmarks.timing import overhead_of

__all__ = ["HEADS", "LENGTHS", "TOLERANCE", "WIDTH", "heads_first", "measure", "tokens_first"]

Array = np.ndarray[Any, Any]

HEADS, WIDTH = 12, 64
LENGTHS = (32, 128, 384, 1024)
MIXED = {
    "8 x 16 to 384 tokens": (384, 160, 96, 64, 40, 32, 24, 16),
    "32 MRPC pairs": MRPC_LENGTHS,
}
IMPORTANCE_LIMIT = 0.10

# |error| / max |reference|, the reference on the same inputs.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def heads_first(torch: Any, x: Array, dtype: str = "float32") -> Any:
    """(b, s, h, d) as torch wants it: (b, h, s, d), in that order in memory."""
    tensor = torch.from_numpy(np.asarray(x, np.float32)).to(getattr(torch, dtype))
    return tensor.transpose(1, 2).contiguous()


def tokens_first(x: Any) -> Any:
    """(b, h, s, d) as (b, s, h, d)."""
    return x.transpose(1, 2)


def measure(bench: Bench) -> None:
    """One sequence of each length, what importance sums add, and batches of mixed lengths."""
    rng = np.random.default_rng(0)
    for length in LENGTHS:
        shape = (1, length, HEADS, WIDTH)
        qkv = tuple(rng.standard_normal(shape, dtype=np.float32) for _ in range(3))
        for dtype in ("float32", "bfloat16"):
            _forward(bench, qkv, dtype)
        _importance(bench, qkv)
    for title, lengths in MIXED.items():
        _mixed(bench, rng, title, lengths)


def _shape(length: int) -> str:
    return f"1 x {length} tokens, {HEADS} heads of {WIDTH}"


def _forward(bench: Bench, qkv: tuple[Array, ...], dtype: str) -> None:
    length = qkv[0].shape[1]
    if not bench.wants("attention", _shape(length), dtype):
        return
    if dtype == "bfloat16":
        if not bench.native_bfloat16:
            return
        import ml_dtypes

        qkv = tuple(x.astype(ml_dtypes.bfloat16) for x in qkv)
        target = Target(2.0, dtype, AMX)
    else:
        target = Target(1.4 if length <= 128 else 1.25, dtype, AVX512)
    q, k, v = qkv
    want = reference.attention(q, k, v)
    out = np.empty_like(q)
    case = Case(
        "attention",
        _shape(length),
        dtype,
        run=lambda: sp.attention(q, k, v, out=out),
        expected=want,
        tolerance=TOLERANCE[dtype],
        target=target,
        flop=4.0 * length * length * HEADS * WIDTH,
    )
    torch = bench.peer("torch")
    if torch is None:
        return
    tensors = [heads_first(torch, x, dtype) for x in qkv]
    sdpa = torch.nn.functional.scaled_dot_product_attention
    run = torch.inference_mode()(lambda: sdpa(*tensors))
    bench.compare([case], [Peer("torch SDPA", dtype, run, want, TOLERANCE[dtype], tokens_first)])


def _importance(bench: Bench, qkv: tuple[Array, ...]) -> None:
    """What the sums by key and by head add to a forward pass."""
    q, k, v = qkv
    title = ("attention, overhead of importance sums", _shape(q.shape[1]), "float32")
    if not bench.wants(*title):
        return
    want = reference.attention(q, k, v, return_importance=True)
    assert isinstance(want, reference.AttentionResult)
    out = np.empty_like(q)

    def with_sums() -> tuple[Any, ...]:
        found = sp.attention(q, k, v, return_importance=True, out=out)
        return found.out, found.token_importance, found.head_importance

    def without() -> Any:
        return sp.attention(q, k, v, out=out)

    check(
        ", ".join(title),
        with_sums(),
        (want.out, want.token_importance, want.head_importance),
        TOLERANCE["float32"],
    )
    both, plain = bench.interleave(", ".join(title), [with_sums, without])
    overhead = overhead_of(both, plain)
    bench.keep_at_most(
        title, overhead, IMPORTANCE_LIMIT, ours=both, peer="spatile without sums", theirs=plain
    )


def _mixed(bench: Bench, rng: np.random.Generator, title: str, lengths: tuple[int, ...]) -> None:
    """Sequences packed back to back against torch on the padded batch, which has the target, and
    on one sequence after another.
    """
    shape = f"{title}, {HEADS} heads of {WIDTH}"
    if not bench.wants("attention, packed", shape, "float32"):
        return
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = int(offsets[-1])
    q, k, v = (rng.standard_normal((tokens, HEADS, WIDTH), dtype=np.float32) for _ in range(3))
    want = reference.attention(q, k, v, offsets=offsets)
    out = np.empty_like(q)
    case = Case(
        "attention, packed",
        shape,
        "float32",
        run=lambda: sp.attention(q, k, v, offsets=offsets, out=out),
        expected=want,
        tolerance=TOLERANCE["float32"],
        target=Target(2.0, "float32, padded"),
        flop=4.0 * sum(n * n for n in lengths) * HEADS * WIDTH,
    )
    torch = bench.peer("torch")
    if torch is None:
        return

    def padded(x: Array) -> Any:
        batch = np.zeros((len(lengths), max(lengths), HEADS, WIDTH), np.float32)
        for i, n in enumerate(lengths):
            batch[i, :n] = x[offsets[i] : offsets[i] + n]
        return heads_first(torch, batch)

    def unpadded(found: Any) -> Array:
        rows = tokens_first(found).numpy()
        return np.concatenate([rows[i, :n] for i, n in enumerate(lengths)])

    tensors = [padded(x) for x in (q, k, v)]
    keys = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
    sdpa = torch.nn.functional.scaled_dot_product_attention
    run = torch.inference_mode()(lambda: sdpa(*tensors, attn_mask=keys[:, None, None, :]))
    parts = [
        [heads_first(torch, x[None, start:stop]) for x in (q, k, v)]
        for start, stop in pairwise(offsets)
    ]
    each = torch.inference_mode()(lambda: [sdpa(*part) for part in parts])

    def joined(found: Any) -> Array:
        return np.concatenate([tokens_first(part).numpy()[0] for part in found])

    peers = [("padded", run, unpadded), ("one by one", each, joined)]
    bench.compare(
        [case],
        [
            Peer(f"torch SDPA, {how}", f"float32, {how}", go, want, TOLERANCE["float32"], result)
            for how, go, result in peers
        ],
    )
