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
def watch(gpu: str) -> Count | None:
    """What the emulated runtime has counted; None for a real one."""
    if "emulated" not in sp.info()["gpu"]["devices"][0]["name"]:
        return None
    library = ctypes.CDLL(os.environ["SPATILE_CUDA_LIBRARY"])
    ask = library.spt_emulated_count
    ask.restype, ask.argtypes = ctypes.c_long, [ctypes.c_char_p]

    def counted(what: str) -> int:
        n = int(ask(what.encode()))
        assert n >= 0
        return n

    return counted


@pytest.fixture
def count(watch: Count | None) -> Count:
    """For tests that are of no use without."""
    if watch is None:
        pytest.skip("only the emulation counts what it does")
    return watch


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
    """An encoder whose runs are done as is said: "plain", "captured" or "replayed"."""

    def __init__(self, encoder: Encoder, count: Count | None):
        self.encoder, self.count = encoder, count

    def run(self, ids: list[list[int]], how: str, **options: object) -> EncoderRun:
        if self.count is None:
            return self.encoder.run(ids, **options)
        names = ("launches", "captures", "replays")
        before = [self.count(name) for name in names]
        done = self.encoder.run(ids, **options)
        launches, captures, replays = (
            self.count(n) - b for n, b in zip(names, before, strict=True)
        )
        went = "plain" if replays == 0 else "captured" if captures else "replayed"
        assert went == how
        assert replays <= 1
        assert (launches > 0) == (how != "replayed") or not any(ids)
        return done


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("kind", ["dense", "tile", "element, sparse", "merged"])
def test_replays_are_to_the_bit_what_plain_runs_are(
    kind: str,
    pruned: bool,
    first_only: bool,
    gpu: str,
    watch: Count | None,
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
    encoder = Watched(Encoder.load(folder, **options), watch)
    plain = Watched(load_plain(monkeypatch, folder, **options), watch)
    seen = []
    for seed, how in enumerate(["plain", "captured", "replayed", "replayed"]):
        got = encoder.run(random_ids(seed), how, first_only=first_only)
        assert_same(got, plain.run(random_ids(seed), "plain", first_only=first_only))
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
    gpu: str, watch: Count | None, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    options = {"device": gpu, "tokens": TOKENS, "heads": HEADS}
    encoder = Watched(Encoder.load(folder, **options), watch)
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
            assert_same(encoder.run(ids, how, **case), plain.run(ids, **case))
    # The same but for what is told: which tokens are protected, and how many heads stay.
    assert_same(encoder.run(ids, "replayed", protect=[-2]), plain.run(ids, protect=[-2]))
    for e in (encoder.encoder, plain):
        e.heads = Schedule.per_layer([1, 0.5, 0.25])
    assert_same(encoder.run(ids, "replayed"), plain.run(ids))
    for e in (encoder.encoder, plain):
        e.heads = None
    assert_same(encoder.run(ids, "plain"), plain.run(ids))


def test_nothing_to_run(gpu: str, watch: Count | None, folder: Path) -> None:
    encoder = Watched(Encoder.load(folder, device=gpu), watch)
    for ids in ([], [[], []]):
        for _ in range(3):
            assert not encoder.run(ids, "plain", first_only=True).hidden.any()
    for how in ("plain", "captured", "replayed"):
        got = encoder.run([[], [4, 5], []], how, first_only=True)
        assert got.hidden.any(axis=1).tolist() == [False, True, False]


def test_the_least_recently_used_graphs_go(gpu: str, count: Count, folder: Path) -> None:
    encoder = Watched(Encoder.load(folder, device=gpu), count)
    before = count("graphs")
    first = random_ids(0, (2,))
    expected = encoder.run(first, "plain")
    for how in ("captured", "replayed"):
        encoder.run(first, how)
    for n in range(3, MOST_GRAPHS + 2):
        for how in ("plain", "captured"):
            encoder.run(random_ids(n, (n,)), how)
    assert count("graphs") - before == MOST_GRAPHS
    encoder.run(random_ids(1, (4,)), "replayed")
    encoder.run(first, "replayed")
    for how in ("plain", "captured"):
        encoder.run(random_ids(0, (3, 3)), how)
    assert count("graphs") - before == MOST_GRAPHS
    encoder.run(random_ids(1, (3,)), "plain")  # nothing was used so long ago
    assert_same(encoder.run(first, "replayed"), expected)
    for n in range(MOST_SHAPES):  # that never come again
        encoder.run([[4], [5] * (n + 1)], "plain")
    encoder.run(first, "plain")
    assert count("graphs") == before


def test_threads_that_run_the_same_and_other_shapes(
    gpu: str, watch: Count | None, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    options = {"device": gpu, "tokens": TOKENS}
    encoder = Encoder.load(folder, **options)
    plain = load_plain(monkeypatch, folder, **options)
    inputs = [random_ids(seed, lengths) for seed in range(3) for lengths in [(9, 4), (12,), (5,)]]
    expected = [plain.run(ids) for ids in inputs]
    replays, wrong = watch("replays") if watch else 0, []
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
    assert not watch or watch("replays") - replays >= 12


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
    encoder.run(random_ids(0), "plain")
    before, captures = {name: count(name) for name in LEFT}, count("captures")
    monkeypatch.setenv("SPT_EMULATED_FAULTS", fault)
    got = encoder.encoder.run(random_ids(1))
    monkeypatch.delenv("SPT_EMULATED_FAULTS")
    # What is captured of a run that fails on the way ends as well as any.
    assert count("captures") - captures == (fault in ("instantiate:1", "replay:1", "alloc:19"))
    assert {name: count(name) for name in LEFT} == before
    assert_same(got, plain.run(random_ids(1)))
    for seed in (2, 3):
        assert_same(encoder.run(random_ids(seed), "plain"), plain.run(random_ids(seed)))
    for how in ("plain", "captured", "replayed"):
        assert_same(encoder.run([[4, 5, 6]], how), plain.run([[4, 5, 6]]))


def test_a_kernel_that_fails_in_a_replay(
    gpu: str, count: Count, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    encoder = Watched(Encoder.load(folder, device=gpu), count)
    expected = encoder.run(random_ids(0), "plain")
    encoder.run(random_ids(0), "captured")
    graphs = count("graphs")
    monkeypatch.setenv("SPT_EMULATED_FAULTS", "launch:3")
    got = encoder.encoder.run(random_ids(0))  # the launch says so at once here: plainly, then
    monkeypatch.delenv("SPT_EMULATED_FAULTS")
    assert_same(got, expected)
    assert count("graphs") == graphs - 1
    assert_same(encoder.run(random_ids(0), "plain"), expected)


def test_importance_that_is_refused_leaves_the_graph_as_it_was(
    gpu: str, watch: Count | None, tmp_path: Path
) -> None:
    model = make_model("bert")
    model.bert.embeddings.word_embeddings.weight.data[7] = np.nan
    encoder = Watched(Encoder.load(save(model, tmp_path), device=gpu, tokens=TOKENS), watch)
    expected = encoder.run([[4, 5, 6, 8]], "plain")
    encoder.run([[4, 5, 6, 8]], "captured")
    with pytest.raises(ValueError, match="encoder: layer 0: the importance of tokens or heads is"):
        encoder.run([[4, 7, 6, 8]], "replayed")
    assert_same(encoder.run([[4, 5, 6, 8]], "replayed"), expected)


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
        encoder.run(random_ids(0, (20,)), how)
    graphs = count("graphs")
    expected = Encoder.load(folder).run(random_ids(1, (12,)))
    monkeypatch.setenv("SPT_EMULATED_FAULTS", f"memory:{count('device bytes') + 1000}")
    got = encoder.run(random_ids(1, (12,)), "plain")
    monkeypatch.delenv("SPT_EMULATED_FAULTS")
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
