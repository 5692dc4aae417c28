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
    "second_order_prune": lambda: sp.second_order_prune(W, X.T @ X, pattern="tile", sparsity=0.5).w,
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


# Whose threads run the tasks: the core's own, or those of the OpenMP runtime that PyTorch brings,
# which is looked for once in 64 jobs.
POOLS = {"own": "", "PyTorch's": "import torch; [sp.linear(x, x) for _ in range(130)]"}


def run_in_a_process(code: str, pool: str) -> None:
    start = f"""
import os, threading
import numpy as np, spatile as sp
sp.set_num_threads(3)
x = np.random.default_rng(0).standard_normal((200, 64)).astype(np.float32)
{POOLS[pool]}
expected = sp.linear(x, x)
"""
    command = [sys.executable, "-W", "ignore", "-c", start + code]
    subprocess.run(command, check=True, timeout=120)


@pytest.mark.parametrize("pool", POOLS)
def test_a_forked_child_computes_with_threads_of_its_own(pool: str) -> None:
    code = """
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        ok = np.array_equal(sp.linear(x, x), expected) and sp.num_threads() == 3
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert np.array_equal(sp.linear(x, x), expected)
"""
    run_in_a_process(code, pool)


LATE = {
    "forked before the first op": "import torch; a = torch.ones(900, 900); a @ a; a.sum()",
    "loaded in the child alone": "import torch; a = torch.ones(900, 900); a @ a; a.sum()",
}


@pytest.mark.parametrize("case", LATE)
def test_a_child_of_a_process_that_used_torch_alone(case: str) -> None:
    """The runtime's threads died in the fork; a call to it would wait for them for ever."""
    imports = "import numpy as np, spatile as sp; sp.num_threads"
    early, late = (imports, "") if case.startswith("forked") else ("", imports)
    code = f"""
import os, signal
{LATE[case]}
{early}
pid = os.fork()
if pid == 0:
    signal.alarm(30)
    {late or "pass"}
    sp.set_num_threads(2)
    x = np.ones((400, 256), np.float32)
    ok = bool((sp.linear(x, x[:256]) == 256).all())
    os._exit(0 if ok else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("pool", POOLS)
def test_callers_in_many_threads(pool: str) -> None:
    code = """
wrong = []
def call():
    for _ in range(300):
        if not np.array_equal(sp.linear(x, x), expected):
            wrong.append(1)
callers = [threading.Thread(target=call) for _ in range(4)]
for thread in callers: thread.start()
for thread in callers: thread.join()
assert not wrong
"""
    run_in_a_process(code, pool)


def test_torch_may_come_later_and_take_turns() -> None:
    """The change of pools loses no task, and torch's own operations go on with their threads."""
    code = """
import torch
t = torch.from_numpy(x)
for i in range(200):
    assert np.array_equal(sp.linear(x, x), expected)
    torch.testing.assert_close(t @ t.T, torch.from_numpy(expected), atol=1e-4, rtol=1e-4)
    torch.set_num_threads(1 + i % 3)
"""
    run_in_a_process(code, "own")


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
