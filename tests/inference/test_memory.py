"""A model outlives what there is no memory for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import make_model, save

SHORT_OF_MEMORY = """
import resource, sys
import numpy as np, spatile as sp
from spatile.inference import Encoder

sp.set_num_threads(2)
encoder = Encoder.load(sys.argv[1])
ids = [[2, 4, 5, 6, 3]] * 7
before = encoder.forward(ids)[0]
large = [[2] + [7] * 90 + [3]] * 5_000
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (200 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
for _ in range(3):
    try:
        encoder.forward(large, first_only=True)
    except MemoryError as error:
        assert str(error).startswith("encoder: no memory for a workspace"), error
    else:
        raise AssertionError("there was memory")
    assert (encoder.forward(ids)[0] == before).all()
print("goes on")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's here")
def test_an_encoder_that_lacked_memory_answers_the_next_call(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, str(save(make_model("bert"), tmp_path))],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.stdout == "goes on\n", done.stderr
