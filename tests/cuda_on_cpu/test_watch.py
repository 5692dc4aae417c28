"""The build that watches every access: races in shared memory, and reads outside of everything."""

from __future__ import annotations

import ctypes
import shutil

import numpy as np
import pytest

from . import build
from .test_emulation import (
    FOLDER,
    HERE,
    ILLEGAL_ADDRESS,
    LAUNCH_FAILURE,
    SUCCESS,
    Memory,
    opened,
    refused,
)

pytestmark = pytest.mark.skipif(shutil.which(build.compiler()[0]) is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    folder = FOLDER.with_name(FOLDER.name + "_watched")
    sources = sorted((HERE / "kernels").glob("*.cu"))
    return opened(build.build(folder, sources, watch=True, name="libkernels.so"))


WRONG = {
    "NO_BARRIER": ["race on byte", "it writes", "what thread (", "read"],
    "NO_SYNCWARP": ["race on byte 4 of", "thread (1,0,0)", "what thread (0,0,0) read"],
    "NO_BARRIER_BEFORE_REUSE": ["race on byte", "writes", "read"],
    "ATOMIC_AND_PLAIN": ["race on byte 0 of", "it writes", "read"],
    "ASYNC_OVER_READS": ["race on byte", "writes", "read"],
    "PAST_SHARED": ["thread (9,0,0)", "reads byte 1024 of 1024 in shared memory"],
    "PAST_DEVICE": ["thread (63,0,0)", "reads 4 bytes", "at byte 256 of cudaMalloc"],
    "BEFORE_DEVICE": ["thread (0,0,0)", "reads 4 bytes", "at byte -4 of cudaMalloc"],
    "HOST_MEMORY": ["reads 4 bytes of the host's memory"],
}


@pytest.mark.parametrize("how", list(WRONG))
def test_what_only_a_watched_build_sees(library, how):
    n = 64
    x = Memory(library, np.arange(n, dtype=np.int32))
    y = Memory(library, np.zeros(n, np.int32))
    number = list(WRONG).index(how)
    code = library.run_race(number, 1, x.data, y.data, n)
    assert code == SUCCESS, library.text_of(code)
    text = refused(library, library.run_race(number, 0, x.data, y.data, n))
    for part in ["race_kernel", *WRONG[how]]:
        assert part in text, text
    if shutil.which("addr2line") and how != "ASYNC_OVER_READS":
        assert "races.cu:" in text, text
    assert x.free() == y.free() == SUCCESS


@pytest.mark.parametrize("order", ["reverse", "3"])
@pytest.mark.parametrize("how", [h for h in WRONG if WRONG[h][0].startswith("race")])
def test_races_are_found_in_any_order(library, monkeypatch, how, order):
    monkeypatch.setenv("SPT_EMULATED_ORDER", order)
    x, y = (Memory(library, np.zeros(64, np.int32)) for _ in range(2))
    number = list(WRONG).index(how)
    assert library.run_race(number, 1, x.data, y.data, 64) == SUCCESS
    assert library.run_race(number, 0, x.data, y.data, 64) == LAUNCH_FAILURE
    library.last_error()
    assert x.free() == y.free() == SUCCESS


def test_the_host_does_not_touch_device_memory(library):
    x = Memory(library, np.zeros(4, np.int32))
    assert library.host_reads(x.data) == ILLEGAL_ADDRESS
    assert "the host reads device memory" in library.text_of(ILLEGAL_ADDRESS).decode()
    assert x.free() == SUCCESS
