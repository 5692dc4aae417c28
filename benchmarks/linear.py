"""sp.linear, dense and tile-sparse, against torch's dense product of the same weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

import spatile as sp
from benchmarks.harness import Bench
from spatile import reference

SHAPES = [(128, 768, 768), (128, 768, 3072), (128, 3072, 768), (512, 768, 3072), (128, 384, 1536)]
SPARSITIES = [0.0, 0.5, 0.8, 0.9]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every shape and sparsity on every number of threads."""
    bench = Bench("linear: rows × in → out, weights pruned in 16×16 tiles", arguments)
    rng = np.random.default_rng(0)
    for threads in bench.thread_counts:
        bench.use_threads(threads)
        for rows, width_in, width_out in SHAPES:
            x = rng.standard_normal((rows, width_in), dtype=np.float32)
            w = rng.standard_normal((width_out, width_in), dtype=np.float32)
            for sparsity in SPARSITIES:
                name = f"{rows} × {width_in} → {width_out}, {sparsity:.0%} pruned"
                if not bench.wants(name):
                    continue
                packed = sp.pack(w, sp.prune_mask(w, pattern="tile", sparsity=sparsity))
                dense = packed.to_dense()
                x_torch, w_torch = torch.from_numpy(x), torch.from_numpy(dense)
                out = np.empty((rows, width_out), np.float32)
                bench.compare(
                    name,
                    lambda x=x, packed=packed, out=out: sp.linear(x, packed, out=out),
                    lambda x=x_torch, w=w_torch: torch.nn.functional.linear(x, w),
                    reference=reference.linear(x, dense),
                    tolerance=1e-5,
                )
    bench.finish()


if __name__ == "__main__":
    main()
