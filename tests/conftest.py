"""What all tests share: reproducible property tests, one torch thread, the CPU tiers to run on."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("spatile", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("spatile")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def elsewhere() -> str | None:
    """What SPATILE_DEVICE names, unless that is the CPU."""
    named = os.environ.get("SPATILE_DEVICE", "")
    return None if named in ("", "cpu") else named


of_the_cpu = pytest.mark.skipif(elsewhere() is not None, reason="of the CPU backend")
"""Tests of what only the CPU backend has: its tiers, its threads, its workspaces."""


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Where host arrays are computed on a GPU, what only the CPU has is not tested."""
    try:
        return (yield)
    except NotImplementedError as refused:
        missing = r"second_order_\w+: the cuda\S* backend does not support this op"
        if elsewhere() is not None and re.fullmatch(missing, str(refused)):
            pytest.skip(str(refused))
        raise


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that uses ``cpu_tier`` runs once per tier of this CPU.

    Where SPATILE_CPU_TIER names one, on that alone. Emulated ones are to be named. Where
    SPATILE_DEVICE has host arrays computed on a GPU, once, and the value is that device's name.
    """
    if "cpu_tier" not in metafunc.fixturenames:
        return
    import spatile as sp

    named = elsewhere() or os.environ.get("SPATILE_CPU_TIER")
    real = [t for t in sp.info()["cpu"]["tiers"] if not t.endswith("_emulated")]
    tiers = [named] if named else real
    metafunc.parametrize("cpu_tier", tiers, indirect=True, scope="module")


@pytest.fixture(scope="module")
def cpu_tier(request: pytest.FixtureRequest) -> Iterator[str]:
    """The tier in force while the test runs; the best one is in force again afterwards."""
    import spatile as sp

    if elsewhere():
        yield request.param
        return
    sp.device._set_cpu_tier(request.param)
    yield request.param
    if "SPATILE_CPU_TIER" not in os.environ:
        sp.device._set_cpu_tier(list(sp.info()["cpu"]["tiers"])[-1])


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data sets that may be used but not committed; skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no data sets at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    """Oracles need no speed, and two thread pools on two cores cost more than one."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)
