"""`sp.linear` with tiles pruned against cuBLAS's product of the whole matrix, as torch calls it."""

from __future__ import annotations

from typing import Any

import torch

import spatile as sp
from spatile.benchmarks.cases import Case, Peer, Target
from spatile.benchmarks.gpu.run import GpuBench

__all__ = ["cases", "measure"]

ROWS = (1024, 2048, 4096, 8192)
MATRICES = ((768, 768), (768, 3072), (3072, 768))  # in, out: BERT-base's
SPARSITIES = (0.0, 0.6, 0.8, 0.9)
TARGET_AT = {0.0: 1.0, 0.6: 1.0, 0.8: 2.0, 0.9: 2.0}
DTYPE = "float16"
TOLERANCE = 3e-3  # |error| / max |reference|, the reference in float64 on the same inputs


def cases() -> list[tuple[int, int, int, float]]:
    """(rows, in, out, sparsity)."""
    return [(n, i, o, s) for i, o in MATRICES for n in ROWS for s in SPARSITIES]


def measure(bench: GpuBench) -> None:
    """BERT's matrices at every sparsity."""
    generator = torch.Generator("cuda").manual_seed(0)
    for width_in, width_out in MATRICES:
        dense = torch.randn((width_out, width_in), generator=generator, device="cuda") / 16
        packed: dict[float, Any] = {}
        for rows, i, o, sparsity in cases():
            shape = f"{rows} rows, {width_in} to {width_out}"
            name = f"linear, {sparsity:.0%} of tiles pruned" if sparsity else "linear, dense"
            if (i, o) == (width_in, width_out) and bench.wants(name, shape, DTYPE):
                if sparsity not in packed:
                    packed[sparsity] = _pack(dense, sparsity)
                _case(bench, name, shape, rows, packed[sparsity], dense, sparsity)


def _pack(dense: Any, sparsity: float) -> Any:
    """On the host, once, and then to where it is used."""
    w = dense.half().cpu().numpy()
    mask = sp.prune_mask(w, pattern="tile", sparsity=sparsity)
    return sp.pack(w, mask, pattern="tile").to("cuda")


def _case(
    bench: GpuBench, name: str, shape: str, rows: int, packed: Any, dense: Any, sparsity: float
) -> None:
    x = torch.randn((rows, dense.shape[1]), device="cuda").half()
    kept = torch.from_numpy(packed.to("cpu").to_dense()).cuda().double()
    whole = dense.half()
    case = Case(
        name,
        shape,
        DTYPE,
        run=lambda: sp.linear(x, packed),
        expected=x.double() @ kept.T,
        tolerance=TOLERANCE,
        target=Target(TARGET_AT[sparsity], DTYPE),
        flop=2.0 * rows * packed.nnz,
    )

    def cublas() -> Any:
        return torch.nn.functional.linear(x, whole)

    want = x.double() @ whole.double().T
    bench.compare(case, [Peer("torch (cuBLAS)", DTYPE, cublas, want, TOLERANCE)])
