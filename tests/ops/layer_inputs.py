"""A layer's correlated inputs, and how far its outputs move when its weights change."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import f64


def inputs(n: int, *, rows: int = 300, dead: int = 0, seed: int = 0) -> np.ndarray:
    """Correlated inputs (rows, n), the last ``dead`` of a shuffled few always zero."""
    rng = np.random.default_rng(seed)
    rank = n // 3 + 1
    x = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, n))
    x += 0.3 * rng.standard_normal((rows, n))
    x[:, rng.permutation(n)[:dead]] = 0.0
    return x


def output_error(x: np.ndarray, before: Any, after: Any) -> float:
    """‖X·ΔWᵀ‖², from the outputs themselves."""
    return float(np.sum((x @ (f64(after) - f64(before)).T) ** 2))
