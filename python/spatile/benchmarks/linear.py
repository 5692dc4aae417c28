"""`sp.linear`, dense and pruned, against dense products of the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import spatile as sp
from spatile import reference
from spatile.benchmarks.cases import AMX, AVX512, Case, Peer, Target
from spatile.benchmarks.runner import Bench

__all__ = ["measure"]

Array = np.ndarray[Any, Any]

SHAPES = ((128, 768, 768), (128, 768, 3072), (128, 3072, 768), (512, 768, 3072), (128, 384, 1536))
SPARSITIES = (0.0, 0.5, 0.8, 0.9)
OTHER_PATTERNS = ("row", "column", "element")
TARGET_AT = {0.0: 1.0, 0.8: 4.0}

# |error| / max |reference|, the reference on the same inputs: float32 differs in the order of its
# sums, bfloat16 is rounded to 8 bits at the end.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}


def measure(bench: Bench) -> None:
    """Tiles at every shape and sparsity, the other patterns at 80 %."""
    rng = np.random.default_rng(0)
    for rows, width_in, width_out in SHAPES:
        x = rng.standard_normal((rows, width_in), dtype=np.float32)
        w = rng.standard_normal((width_out, width_in), dtype=np.float32)
        shape = f"{rows} rows, {width_in} to {width_out}"
        for dtype in ("float32", "bfloat16"):
            _tiles(bench, x, w, shape, dtype)
        _other_patterns(bench, x, w, shape)


def _tiles(bench: Bench, x: Array, w: Array, shape: str, dtype: str) -> None:
    names = {s: f"linear, {s:.0%} of tiles pruned" if s else "linear, dense" for s in SPARSITIES}
    names = {s: name for s, name in names.items() if bench.wants(name, shape, dtype)}
    if not names:
        return
    if dtype == "bfloat16":
        if not bench.native_bfloat16:
            return
        import ml_dtypes

        x, w = x.astype(ml_dtypes.bfloat16), w.astype(ml_dtypes.bfloat16)
    cases = []
    for sparsity, name in names.items():
        target = None
        if sparsity in TARGET_AT:
            target = Target(TARGET_AT[sparsity], dtype, AVX512 if dtype == "float32" else AMX)
        cases.append(_case(name, shape, dtype, x, w, "tile", sparsity, target))
    bench.compare(cases, _dense_peers(bench, x, w, dtype))


def _other_patterns(bench: Bench, x: Array, w: Array, shape: str) -> None:
    """Against torch and against our own dense product: pruning must not cost time."""
    cases = []
    for pattern in OTHER_PATTERNS:
        name = f"linear, 80% of {pattern}s pruned"
        if bench.wants(name, shape, "float32"):
            target = Target(1.0, "float32")
            cases.append(_case(name, shape, "float32", x, w, pattern, 0.8, target))
    if not cases:
        return
    dense = _case("", shape, "float32", x, w, "tile", 0.0, None)
    own = Peer("spatile dense", "float32", dense.run, dense.expected, dense.tolerance)
    bench.compare(cases, [own, *_dense_peers(bench, x, w, "float32")])


def _case(
    name: str,
    shape: str,
    dtype: str,
    x: Array,
    w: Array,
    pattern: str,
    sparsity: float,
    target: Target | None,
) -> Case:
    mask = sp.prune_mask(w, pattern=pattern, sparsity=sparsity)
    packed = sp.pack(w, mask, pattern=pattern)
    out = np.empty((len(x), len(w)), x.dtype)
    compute = "bfloat16" if dtype == "bfloat16" else None
    return Case(
        name,
        shape,
        dtype,
        run=lambda: sp.linear(x, packed, compute=compute, out=out),
        expected=reference.linear(_wide(x), packed.to_dense()),
        tolerance=TOLERANCE[dtype],
        target=target,
        flop=2.0 * len(x) * packed.nnz,
    )


def _dense_peers(bench: Bench, x: Array, w: Array, dtype: str) -> list[Peer]:
    """Products of the whole matrix: no peer's time depends on how many weights are zero."""
    torch = bench.peer("torch")
    if torch is None:
        return []
    left, right = (torch.from_numpy(_wide(a)).to(getattr(torch, dtype)) for a in (x, w))
    out = torch.empty(len(x), len(w), dtype=left.dtype)
    runs: dict[str, Callable[[], Any]] = {"torch": lambda: torch.mm(left, right.T, out=out)}
    if torch.backends.mkldnn.is_available():
        # What torch.compile makes of a frozen linear. torch.mm takes MKL for float32, which on
        # processors that are not Intel's runs at half of what oneDNN reaches.
        ops = torch.ops.mkldnn
        packed = ops._reorder_linear_weight(right, len(x))
        runs["torch oneDNN"] = lambda: ops._linear_pointwise(left, packed, None, "none", [], "")
    want = reference.linear(_wide(x), _wide(w))
    return [
        Peer(name, dtype, torch.inference_mode()(run), want, TOLERANCE[dtype])
        for name, run in runs.items()
    ]


def _wide(a: Array) -> Array:
    return np.asarray(a, np.float32)
