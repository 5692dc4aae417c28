"""The thread pool: any size, any number of callers, resized under them, and after a fork."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest

import spatile as sp

rng = np.random.default_rng(0)
X = rng.standard_normal((70, 96)).astype(np.float32)
W = rng.standard_normal((112, 96)).astype(np.float32)
PACKED = sp.pack(W, rng.random((7, 6)) < 0.5)
Q = rng.standard_normal((2, 40, 4, 16)).astype(np.float32)

OPS: dict[str, Callable[[], np.ndarray]] = {
    "linear": lambda: sp.linear(X, PACKED, activation="gelu"),
    "linear_backward": lambda: sp.linear_backward(X @ W.T, X, PACKED).w,
    "attention": lambda: sp.attention(Q, Q, Q, causal=True),
    "dropout": lambda: sp.dropout(X, p=0.3, seed=11),
    "softmax": lambda: sp.softmax(X[:, ::2].astype(np.float16)),
    "topk": lambda: sp.topk(X, 9).indices,
    "group_norms": lambda: sp.group_norms(W, pattern="column"),
}


@pytest.fixture(autouse=True)
def restored_threads():
    before = sp.num_threads()
    yield
    sp.set_num_threads(before)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_same_input_same_threads_same_bits(name: str, threads: int) -> None:
    sp.set_num_threads(threads)
    first = OPS[name]()
    for _ in range(20):
        np.testing.assert_array_equal(OPS[name](), first)


def test_callers_in_many_threads_while_the_pool_is_resized() -> None:
    sp.set_num_threads(2)
    expected = {name: op() for name, op in OPS.items()}
    wrong: list[str] = []
    done = threading.Event()

    def call(name: str) -> None:
        for _ in range(150):
            if not np.array_equal(OPS[name](), expected[name]):
                wrong.append(name)

    def resize() -> None:
        while not done.is_set():
            for n in (1, 7, 2, 16, 3):
                sp.set_num_threads(n)

    resizer = threading.Thread(target=resize)
    callers = [threading.Thread(target=call, args=(name,)) for name in OPS]
    for thread in [resizer, *callers]:
        thread.start()
    for thread in callers:
        thread.join()
    done.set()
    resizer.join()
    assert wrong == []


def test_a_forked_child_computes_with_threads_of_its_own() -> None:
    code = """
import os, sys
import numpy as np, spatile as sp
sp.set_num_threads(3)
x = np.random.default_rng(0).standard_normal((200, 64)).astype(np.float32)
expected = sp.linear(x, x)
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        ok = np.array_equal(sp.linear(x, x), expected) and sp.num_threads() == 3
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert np.array_equal(sp.linear(x, x), expected)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


def test_threads_come_from_the_environment() -> None:
    code = "import spatile; print(spatile.num_threads())"
    for value, expected in (("3", "3"), ("4,2", "4"), ("0", None), ("many", None)):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "OMP_NUM_THREADS": value},
            capture_output=True,
            text=True,
            check=True,
        )
        found = run.stdout.strip()
        assert found == expected if expected else int(found) >= 1


@pytest.mark.parametrize("n", [0, -1, 257, 2**40])
def test_a_number_of_threads_that_makes_no_sense(n: int) -> None:
    with pytest.raises(ValueError, match="set_num_threads: n is"):
        sp.set_num_threads(n)
