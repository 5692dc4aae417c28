"""Devices: what this machine offers, which CPU tier is in use, how many threads."""

from __future__ import annotations

from typing import Any

from spatile import _core
from spatile._version import __version__

__all__ = ["devices", "info", "num_threads", "set_num_threads"]


def devices() -> tuple[str, ...]:
    """The devices that ops can run on here.

    >>> import spatile as sp
    >>> "cpu" in sp.devices()
    True
    """
    return ("cpu",)


def num_threads() -> int:
    """Threads of the CPU backend."""
    return _core.num_threads()


def set_num_threads(n: int) -> None:
    """Size the CPU backend's thread pool; the default is OMP_NUM_THREADS or the cores at hand.

    Raises ValueError unless 1 ≤ n ≤ 256.
    """
    _core.set_num_threads(n)


def info() -> dict[str, Any]:
    """Version, devices, CPU tier in use with the reason for it, the tiers that run here, threads.

    The tier is ``"none"`` where the environment variable SPATILE_CPU_TIER names one that does not
    run here; then every op raises RuntimeError.

    >>> import spatile as sp
    >>> sp.info()["cpu"]["tier"] in sp.info()["cpu"]["tiers"]
    True
    """
    tier, reason, tiers = _core.cpu_tier()
    return {
        "version": __version__,
        "devices": list(devices()),
        "cpu": {
            "tier": tier,
            "reason": reason,
            "tiers": list(tiers),
            "threads": num_threads(),
        },
        "gpu": {"available": False, "reason": "this build has no CUDA backend"},
    }


def _set_cpu_tier(name: str) -> None:
    """For tests and benchmarks: use another tier from now on. ValueError if it can't run here."""
    _core.select_cpu_tier(name)
