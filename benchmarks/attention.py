"""sp.attention, forward and backward, against torch's scaled_dot_product_attention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

import spatile as sp
from benchmarks.harness import Bench
from spatile import reference

HEADS, WIDTH = 12, 64
LENGTHS = [32, 128, 384, 1024]
MIXED = [384, 160, 96, 64, 40, 32, 24, 16]
TOLERANCE = 1e-5


def heads_first(x: np.ndarray) -> torch.Tensor:
    """(b, s, h, d) as the (b, h, s, d) that torch wants, in that order in memory."""
    return torch.from_numpy(x).transpose(1, 2).contiguous()


def forward(bench: Bench, rng: np.random.Generator, length: int) -> None:
    """One sequence."""
    name = f"1 × {length} × {HEADS} × {WIDTH}, forward"
    if not bench.wants(name):
        return
    q, k, v = (rng.standard_normal((1, length, HEADS, WIDTH), dtype=np.float32) for _ in range(3))
    tensors = [heads_first(x) for x in (q, k, v)]
    bench.compare(
        name,
        lambda: sp.attention(q, k, v),
        lambda: scaled_dot_product_attention(*tensors),
        reference=reference.attention(q, k, v),
        tolerance=TOLERANCE,
    )


def forward_and_backward(bench: Bench, rng: np.random.Generator, length: int) -> None:
    """One sequence; the result that is checked is the gradient by Q."""
    name = f"1 × {length} × {HEADS} × {WIDTH}, forward and backward"
    if not bench.wants(name):
        return
    shape = (1, length, HEADS, WIDTH)
    q, k, v, grad = (rng.standard_normal(shape, dtype=np.float32) for _ in range(4))
    tensors = [heads_first(x).requires_grad_() for x in (q, k, v)]
    grad_torch = heads_first(grad)

    def ours() -> np.ndarray:
        done = sp.attention(q, k, v, return_lse=True)
        return sp.attention_backward(grad, q, k, v, done.out, done.lse).q

    def peer() -> object:
        out = scaled_dot_product_attention(*tensors)
        return torch.autograd.grad(out, tensors, grad_torch)

    done = reference.attention(q, k, v, return_lse=True)
    want = reference.attention_backward(grad, q, k, v, done.out, done.lse).q
    bench.compare(name, ours, peer, reference=want, tolerance=TOLERANCE)


def mixed_lengths(bench: Bench, rng: np.random.Generator) -> None:
    """A batch of sequences packed back to back, against torch on the padded batch."""
    name = f"{len(MIXED)} × {min(MIXED)}…{max(MIXED)}, packed against padded"
    if not bench.wants(name):
        return
    offsets = np.concatenate([[0], np.cumsum(MIXED)])
    shape = (int(offsets[-1]), HEADS, WIDTH)
    q, k, v = (rng.standard_normal(shape, dtype=np.float32) for _ in range(3))

    def padded(x: np.ndarray) -> torch.Tensor:
        batch = np.zeros((len(MIXED), max(MIXED), HEADS, WIDTH), np.float32)
        for i, n in enumerate(MIXED):
            batch[i, :n] = x[offsets[i] : offsets[i] + n]
        return heads_first(batch)

    tensors = [padded(x) for x in (q, k, v)]
    keys = torch.arange(max(MIXED))[None, :] < torch.tensor(MIXED)[:, None]
    bench.compare(
        name,
        lambda: sp.attention(q, k, v, offsets=offsets),
        lambda: scaled_dot_product_attention(*tensors, attn_mask=keys[:, None, None, :]),
        reference=reference.attention(q, k, v, offsets=offsets),
        tolerance=TOLERANCE,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every length on every number of threads."""
    bench = Bench("attention: batch × sequence × heads × head width", arguments)
    rng = np.random.default_rng(0)
    for threads in bench.thread_counts:
        bench.use_threads(threads)
        for length in LENGTHS:
            forward(bench, rng, length)
        for length in LENGTHS:
            forward_and_backward(bench, rng, length)
        mixed_lengths(bench, rng)
    bench.finish()


if __name__ == "__main__":
    main()
