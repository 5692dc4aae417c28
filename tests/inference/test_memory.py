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


NO_MORE_MEMORY = """
import resource, sys
import numpy as np
from spatile.inference import Encoder

encoder = Encoder.load(sys.argv[1], compute=sys.argv[2])
ids = [[2] + [7] * 60 + [3]] * 400  # 25,000 tokens: a workspace of tens of megabytes
larger = [[2] + [7] * 90 + [3]] * 1_000
before = encoder.forward(ids, first_only=True)[0]
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (4 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
for _ in range(3):
    assert (encoder.forward(ids, first_only=True)[0] == before).all()
try:
    encoder.forward(larger, first_only=True)
except MemoryError:
    print("the limit holds")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's here")
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_a_second_run_of_a_size_allocates_nothing(tmp_path: Path, compute: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_MORE_MEMORY, str(save(make_model("bert"), tmp_path)), compute],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.stdout == "the limit holds\n", done.stderr
