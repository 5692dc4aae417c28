"""What `make bench-gpu` measures, on CUDA tensors: ``python -m spatile.benchmarks.gpu``.

As on the CPU each case is a ratio of two sides in one process, each result is checked before it is
timed, and a ratio above 1 is better for us. Times are CUDA events', around CUDA graphs where a side
can be captured into one.
"""

from __future__ import annotations

__all__ = ["NAMES"]

#: The benchmarks, in the order in which they run; each is the module of its name.
NAMES = ("attention", "linear", "encoder", "memory")
