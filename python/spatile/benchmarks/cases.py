"""What is compared: our side of a case, its peers, the target; and the check before the clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "AMX",
    "AVX512",
    "NATIVE_BFLOAT16",
    "Case",
    "Peer",
    "Target",
    "WrongAnswerError",
    "check",
]

Arrays = Any
"""An array, or a sequence of arrays."""

#: The tiers whose float32 products run on AVX-512.
AVX512 = frozenset({"avx512", "avx512_bf16", "amx_bf16"})
AMX = frozenset({"amx_bf16"})

#: The tiers with instructions for bfloat16 products; elsewhere there is nothing to measure.
NATIVE_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})


class WrongAnswerError(Exception):
    """A side's result is not the reference's: a wrong answer has no speed."""


@dataclass(frozen=True)
class Target:
    """At least ``ratio`` against the best peer of ``precision`` (None: of any), on ``tiers``."""

    ratio: float
    precision: str | None = None
    tiers: frozenset[str] | None = None

    def holds_on(self, tier: str) -> bool:
        """Whether the target names this tier; None names them all."""
        return self.tiers is None or tier in self.tiers


@dataclass(frozen=True)
class Case:
    """Our side. ``flop`` is what ``run`` computes, for GFLOP/s beside the time."""

    case: str
    shape: str
    dtype: str
    run: Callable[[], Arrays]
    expected: Arrays
    tolerance: float
    target: Target | None = None
    flop: float | None = None

    @property
    def title(self) -> str:
        """As it is printed, and as ``--only`` searches it."""
        return f"{self.case}, {self.shape}, {self.dtype}"


@dataclass(frozen=True)
class Peer:
    """The other side; ``result`` brings what ``run`` returns into the shape of ``expected``."""

    name: str
    precision: str
    run: Callable[[], Any]
    expected: Arrays
    tolerance: float
    result: Callable[[Any], Arrays] = lambda x: x


def _arrays(found: Arrays) -> list[np.ndarray[Any, Any]]:
    parts = found if isinstance(found, (tuple, list)) else [found]
    return [_float64(part) for part in parts]


def _float64(x: Any) -> np.ndarray[Any, Any]:
    # NumPy can't read a bfloat16 tensor.
    if hasattr(x, "detach"):
        x = x.detach().double()
    return np.asarray(x, np.float64)


def check(title: str, found: Arrays, expected: Arrays, tolerance: float) -> float:
    """The largest |error| over the largest |expected|.

    ``found`` and ``expected`` are arrays or equally long sequences of them. Raises WrongAnswerError
    above ``tolerance``, and for other shapes.

    >>> check("ones", [1.0, 1.0], [1.0, 1.0], tolerance=0.0)
    0.0
    """
    pairs = list(zip(_arrays(found), _arrays(expected), strict=True))
    worst = 0.0
    for got, want in pairs:
        if got.shape != want.shape:
            raise WrongAnswerError(f"{title}: result's shape is {got.shape}, expected {want.shape}")
        if got.size == 0:
            continue
        error = float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-30))
        if not error <= tolerance:  # NaN too
            raise WrongAnswerError(f"{title}: error {error:.2e}, expected at most {tolerance:.0e}")
        worst = max(worst, error)
    return worst
