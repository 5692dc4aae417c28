"""Encoder runs of a shape that came before replay a CUDA graph, to the bit what they were."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import spatile as sp
from spatile.inference import Encoder
from spatile.inference.running import EncoderRun
from spatile.sparsity import Schedule
from tests.device.conftest import Run
from tests.inference.conftest import make_model, plans, prune, save

LENGTHS = (17, 1, 23, 5)
TOKENS = Schedule.per_layer([1, 0.6, 0.3])
HEADS = Schedule.per_layer([1, 0.75, 0.5])
MOST_GRAPHS, MOST_SHAPES = 16, 64  # cuda/encoder_shapes.cu
LEFT = ("graphs", "streams", "device bytes", "pinned bytes")

Count = Callable[[str], int]


@pytest.fixture
def count(gpu: str) -> Count:
    """What the emulated runtime has counted. A real one counts nothing."""
    found = sp.info()["gpu"]
    if "emulated" not in found["devices"][0]["name"]:
        pytest.skip("only the emulation counts what it does")
    library = ctypes.CDLL(os.environ["SPATILE_CUDA_LIBRARY"])
    ask = library.spt_emulated_count
    ask.restype, ask.argtypes = ctypes.c_long, [ctypes.c_char_p]

    def counted(what: str) -> int:
        n = int(ask(what.encode()))
        assert n >= 0
        return n

    return counted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(make_model("bert"), tmp_path)


def random_ids(seed: int, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(4, 40, n).tolist() for n in lengths]


def load_plain(monkeypatch: pytest.MonkeyPatch, folder: Path, **options: object) -> Encoder:
    """An encoder that launches kernel by kernel, always."""
    monkeypatch.setenv("SPATILE_CUDA_GRAPHS", "none")
    encoder = Encoder.load(folder, **options)
    monkeypatch.delenv("SPATILE_CUDA_GRAPHS")
    return encoder


def assert_same(got: EncoderRun, expected: EncoderRun) -> None:
    assert got.hidden.tobytes() == expected.hidden.tobytes()
    assert_array_equal(got.positions, expected.positions)
    assert_array_equal(got.offsets, expected.offsets)
    assert_array_equal(got.kept.heads, expected.kept.heads)
    for mine, other in zip(got.kept.tokens, expected.kept.tokens, strict=True):
        assert_array_equal(mine, other)
    assert got.cost == expected.cost


class Watched:
    """Runs of an encoder, with what each had the runtime do."""

    def __init__(self, encoder: Encoder, count: Count):
        self.encoder, self.count = encoder, count

    def run(self, ids: list[list[int]], **options: object) -> tuple[EncoderRun, str]:
        names = ("launches", "captures", "replays")
        before = [self.count(name) for name in names]
        done = self.encoder.run(ids, **options)
        launches, captures, replays = (
            self.count(n) - b for n, b in zip(names, before, strict=True)
        )
        if replays == 0:
            return done, "plain"
        assert replays == 1
        assert (launches > 0) == (captures == 1)
        return done, "captured" if captures else "replayed"


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("kind", ["dense", "tile", "element, sparse", "merged"])
def test_replays_are_to_the_bit_what_plain_runs_are(
    kind: str,
    pruned: bool,
    first_only: bool,
    gpu: str,
    count: Count,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    model = make_model("bert")
    plan = None if kind == "dense" else plans(model)[kind]
    if plan is not None:
        prune(model, plan)
    options = {"plan": plan, "device": gpu}
    if pruned:
        options |= {"tokens": TOKENS, "heads": HEADS}
    folder = save(model, tmp_path)
    encoder = Watched(Encoder.load(folder, **options), count)
    plain = Watched(load_plain(monkeypatch, folder, **options), count)
    seen = []
    for seed, how in enumerate(["plain", "captured", "replayed", "replayed"]):
        got, went = encoder.run(random_ids(seed), first_only=first_only)
        expected, went_plainly = plain.run(random_ids(seed), first_only=first_only)
        assert (went, went_plainly) == (how, "plain")
        assert_same(got, expected)
        seen.append(got.hidden.tobytes())
    assert len(set(seen)) == 4


def test_bfloat16_and_memory_that_is_used_again(run: Run, folder: Path) -> None:
    code = f"""
import ctypes, os
from spatile.inference import Encoder
from spatile.sparsity import Schedule
options = dict(device='cuda', compute='bfloat16')
options |= dict(tokens=Schedule.per_layer([1, .6, .3]), heads=Schedule.per_layer([1, .75, .5]))
encoder = Encoder.load({str(folder)!r}, **options)
os.environ['SPATILE_CUDA_GRAPHS'] = 'none'
plain = Encoder.load({str(folder)!r}, **options)
count = ctypes.CDLL(os.environ['SPATILE_CUDA_LIBRARY']).spt_emulated_count
for seed in range(4):
    rng = np.random.default_rng(seed)
    ids = [rng.integers(4, 40, n).tolist() for n in (17, 1, 23, 5)]
    got, expected = encoder.run(ids), plain.run(ids)
    print(got.hidden.tobytes() == expected.hidden.tobytes(), count(b'replays'))
"""
    done = run(code, SPATILE_EMULATED_POOL="1")
    assert done.stdout == "True 0\nTrue 1\nTrue 2\nTrue 3\n", done.stdout + done.stderr


def test_what_is_another_shape(
    gpu: str, count: Count, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    options = {"device": gpu, "tokens": TOKENS, "heads": HEADS}
    encoder = Watched(Encoder.load(folder, **options), count)
    plain = load_plain(monkeypatch, folder, **options)
    ids = random_ids(0, (17, 13, 23))
    types = [[i % 2 for i in range(len(row))] for row in ids]
    cases = [
        {},
        {"first_only": True},
        {"types": types},
        {"protect": [-1]},
        {"protect": list(range(5, 12))},  # more tokens stay
    ]
    for how in ("plain", "captured", "replayed"):
        for case in cases:
            got, went = encoder.run(ids, **case)
            assert went == how, case
            assert_same(got, plain.run(ids, **case))
    # The same but for what is told: which tokens are protected, and how many heads stay.
    got, went = encoder.run(ids, protect=[-2])
    assert went == "replayed"
    assert_same(got, plain.run(ids, protect=[-2]))
    for e in (encoder.encoder, plain):
        e.heads = Schedule.per_layer([1, 0.5, 0.25])
    got, went = encoder.run(ids)
    assert went == "replayed"
    assert_same(got, plain.run(ids))
    for e in (encoder.encoder, plain):
        e.heads = None
    got, went = encoder.run(ids)
    assert went == "plain"
    assert_same(got, plain.run(ids))


def test_nothing_to_run(gpu: str, count: Count, folder: Path) -> None:
    encoder = Watched(Encoder.load(folder, device=gpu), count)
    for ids in ([], [[], []]):
        for _ in range(3):
            got, went = encoder.run(ids, first_only=True)
            assert went == "plain"
            assert not got.hidden.any()
    for how in ("plain", "captured", "replayed"):
        got, went = encoder.run([[], [4, 5], []], first_only=True)
        assert went == how
        assert got.hidden.any(axis=1).tolist() == [False, True, False]


def test_the_least_recently_used_graphs_go(gpu: str, count: Count, folder: Path) -> None:
    encoder = Watched(Encoder.load(folder, device=gpu), count)
    before = count("graphs")
    first = random_ids(0, (2,))
    expected = encoder.run(first)[0]
    for how in ("captured", "replayed"):
        assert encoder.run(first)[1] == how
    for n in range(3, MOST_GRAPHS + 2):
        for how in ("plain", "captured"):
            assert encoder.run(random_ids(n, (n,)))[1] == how
    assert count("graphs") - before == MOST_GRAPHS
    assert encoder.run(random_ids(1, (4,)))[1] == "replayed"
    assert encoder.run(first)[1] == "replayed"  # in use again before another came
    for how in ("plain", "captured"):
        assert encoder.run(random_ids(0, (3, 3)))[1] == how
    assert count("graphs") - before == MOST_GRAPHS
    assert encoder.run(random_ids(1, (3,)))[1] == "plain"  # it was the last used before all others
    got, went = encoder.run(first)
    assert went == "replayed"
    assert_same(got, expected)
    for n in range(MOST_SHAPES):  # that never come again
        assert encoder.run([[4], [5] * (n + 1)])[1] == "plain"
    assert encoder.run(first)[1] == "plain"
    assert count("graphs") == before


def test_threads_that_run_the_same_and_other_shapes(
    gpu: str, count: Count, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    options = {"device": gpu, "tokens": TOKENS}
    encoder = Encoder.load(folder, **options)
    plain = load_plain(monkeypatch, folder, **options)
    inputs = [random_ids(seed, lengths) for seed in range(3) for lengths in [(9, 4), (12,), (5,)]]
    expected = [plain.run(ids) for ids in inputs]
    replays, wrong = count("replays"), []
    start = threading.Barrier(2)

    def work(step: int) -> None:
        start.wait()
        for i in range(24):
            at = i * step % len(inputs)
            try:
                assert_same(encoder.run(inputs[at]), expected[at])
            except BaseException as error:  # to be raised by the test's own thread
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(step,)) for step in (1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[0]
    assert count("replays") - replays >= 12


FAULTS = [
    "capture:1",
    "instantiate:1",
    "replay:1",
    *(f"alloc:{n}" for n in (1, 2, 5, 19)),  # pinned memory, the upload's, an activation's, scratch
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_capture_that_fails_is_not_tried_again(
    fault: str, gpu: str, count: Count, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    options = {"device": gpu, "tokens": TOKENS, "heads": HEADS}
    encoder = Watched(Encoder.load(folder, **options), count)
    plain = load_plain(monkeypatch, folder, **options)
    assert encoder.run(random_ids(0))[1] == "plain"
    before, captures = {name: count(name) for name in LEFT}, count("captures")
    monkeypatch.setenv("SPT_EMULATED_FAULTS", fault)
    got, went = encoder.run(random_ids(1))
    monkeypatch.delenv("SPT_EMULATED_FAULTS")
    assert went == "plain"
    assert count("captures") - captures == (fault in ("instantiate:1", "replay:1", "alloc:19"))
    assert {name: count(name) for name in LEFT} == before
    assert_same(got, plain.run(random_ids(1)))
    for seed in (2, 3):
        got, went = encoder.run(random_ids(seed))
        assert went == "plain"
        assert_same(got, plain.run(random_ids(seed)))
    for how in ("plain", "captured", "replayed"):
        got, went = encoder.run([[4, 5, 6]])
        assert went == how
        assert_same(got, plain.run([[4, 5, 6]]))


def test_a_kernel_that_fails_in_a_replay(
    gpu: str, count: Count, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    encoder = Watched(Encoder.load(folder, device=gpu), count)
    expected = encoder.run(random_ids(0))[0]
    assert encoder.run(random_ids(0))[1] == "captured"
    graphs = count("graphs")
    monkeypatch.setenv("SPT_EMULATED_FAULTS", "launch:3")
    got = encoder.encoder.run(random_ids(0))  # the launch says so at once here: plainly, then
    monkeypatch.delenv("SPT_EMULATED_FAULTS")
    assert_same(got, expected)
    assert count("graphs") == graphs - 1
    got, went = encoder.run(random_ids(0))
    assert went == "plain"
    assert_same(got, expected)


def test_importance_that_is_refused_leaves_the_graph_as_it_was(
    gpu: str, count: Count, tmp_path: Path
) -> None:
    model = make_model("bert")
    model.bert.embeddings.word_embeddings.weight.data[7] = np.nan
    encoder = Watched(Encoder.load(save(model, tmp_path), device=gpu, tokens=TOKENS), count)
    expected = encoder.run([[4, 5, 6, 8]])[0]
    assert encoder.run([[4, 5, 6, 8]])[1] == "captured"
    with pytest.raises(ValueError, match="encoder: layer 0: the importance of tokens or heads is"):
        encoder.run([[4, 7, 6, 8]])
    got, went = encoder.run([[4, 5, 6, 8]])
    assert went == "replayed"
    assert_same(got, expected)


def test_nothing_is_left_of_an_encoder(gpu: str, count: Count, folder: Path) -> None:
    gc.collect()
    before = {name: count(name) for name in LEFT}
    encoder = Encoder.load(folder, device=gpu, tokens=TOKENS, heads=HEADS)
    for lengths in (LENGTHS, (4,), (8, 8)):
        for seed in range(3):
            encoder.run(random_ids(seed, lengths))
    assert count("graphs") - before["graphs"] == 3
    assert count("pinned bytes") > before["pinned bytes"]
    del encoder
    gc.collect()
    assert {name: count(name) for name in LEFT} == before


def test_graphs_give_way_where_memory_lacks(
    gpu: str, count: Count, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    encoder = Watched(Encoder.load(folder, device=gpu), count)
    for how in ("plain", "captured"):
        assert encoder.run(random_ids(0, (20,)))[1] == how
    graphs = count("graphs")
    expected = Encoder.load(folder).run(random_ids(1, (12,)))
    monkeypatch.setenv("SPT_EMULATED_FAULTS", f"memory:{count('device bytes') + 1000}")
    got, went = encoder.run(random_ids(1, (12,)))
    monkeypatch.delenv("SPT_EMULATED_FAULTS")
    assert went == "plain"
    assert count("graphs") == graphs - 1
    np.testing.assert_allclose(got.hidden, expected.hidden, atol=2e-5)


def test_a_graph_that_takes_much_of_the_device_is_not_kept(run: Run, folder: Path) -> None:
    code = f"""
import ctypes, os
from spatile.inference import Encoder
encoder = Encoder.load({str(folder)!r}, device='cuda')
count = ctypes.CDLL(os.environ['SPATILE_CUDA_LIBRARY']).spt_emulated_count
def replays(ids):
    before = count(b'replays')
    for _ in range(4): encoder.run(ids)
    return count(b'replays') - before, count(b'graphs')
print(replays([[4] * 3]), replays([[4] * 75] * 2), replays([[4] * 3]), replays([[4] * 75] * 2))
"""
    done = run(code, SPT_EMULATED_FAULTS=f"memory:{4 << 20}")
    assert done.stdout == "(3, 1) (1, 1) (4, 1) (0, 1)\n", done.stdout + done.stderr
