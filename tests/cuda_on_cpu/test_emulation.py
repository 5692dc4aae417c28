"""The emulation itself: what threads see of one another, and that what is wrong is named."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from . import build

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parents[1] / "build" / "cuda_on_cpu_tests"

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, BAD_CONFIGURATION = 0, 1, 2, 9
OLD_DRIVER, NO_DEVICE, ILLEGAL_ADDRESS, LAUNCH_FAILURE = 35, 100, 700, 719
TO_DEVICE, TO_HOST = 1, 2

pytestmark = pytest.mark.skipif(shutil.which(build.compiler()[0]) is None, reason="no C++ compiler")


def opened(path: Path) -> ctypes.CDLL:
    """The library, its functions' types declared."""
    found = ctypes.CDLL(str(path))
    found.text_of.restype = ctypes.c_char_p
    found.take.restype = ctypes.c_void_p
    found.spt_emulated_count.restype = ctypes.c_long
    found.spt_emulated_count.argtypes = [ctypes.c_char_p]
    found.take.argtypes = [ctypes.c_size_t]
    found.give.argtypes = [ctypes.c_void_p]
    found.memory_type.argtypes = [ctypes.c_void_p]
    found.copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return found


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    """The kernels of this folder."""
    sources = sorted((HERE / "kernels").glob("*.cu"))
    return opened(build.build(FOLDER, sources, name="libkernels.so"))


COUNTS = ("launches", "captures", "replays", "graphs", "streams", "device bytes", "pinned bytes")
LEFT = COUNTS[3:]


def counted(library: ctypes.CDLL) -> dict[str, int]:
    """What the runtime has counted so far."""
    return {name: library.spt_emulated_count(name.encode()) for name in COUNTS}


class Memory:
    """An array's copy on the device."""

    def __init__(self, library: ctypes.CDLL, array: np.ndarray):
        self.library, self.like = library, array
        self.data = ctypes.c_void_p(library.take(array.nbytes))
        assert self.data
        assert library.copy(self.data, array.ctypes.data, array.nbytes, TO_DEVICE) == SUCCESS

    def get(self) -> np.ndarray:
        out = np.empty_like(self.like)
        assert self.library.copy(out.ctypes.data, self.data, out.nbytes, TO_HOST) == SUCCESS
        return out

    def free(self) -> int:
        return self.library.give(self.data)


@pytest.fixture
def memory(library: ctypes.CDLL) -> Iterator:
    """Gives an array's copy on the device, freed when the test is over."""
    taken: list[Memory] = []

    def take(array: np.ndarray) -> Memory:
        taken.append(Memory(library, np.ascontiguousarray(array)))
        return taken[-1]

    yield take
    for piece in taken:
        assert piece.free() == SUCCESS


def refused(library: ctypes.CDLL, code: int, expected: int = LAUNCH_FAILURE) -> str:
    """The text of a failure, which leaves nothing behind."""
    assert code == expected
    assert library.last_error() == SUCCESS
    return library.text_of(code).decode()


# ---- barriers, shuffles, votes ---


@pytest.mark.parametrize("order", ["forward", "reverse", "1", "77"])
@pytest.mark.parametrize("n", [1, 31, 32, 33, 1000, 1024])
def test_what_is_stored_before_a_barrier_is_seen_behind_it(library, memory, monkeypatch, n, order):
    monkeypatch.setenv("SPT_EMULATED_ORDER", order)
    x, y = memory(np.arange(n, dtype=np.int32)), memory(np.zeros(n, np.int32))
    assert library.run_reverse(x.data, y.data, n) == SUCCESS
    np.testing.assert_array_equal(y.get(), np.arange(n)[::-1])


@pytest.mark.parametrize(("threads", "limit"), [(64, 0), (64, 10), (64, 64), (33, 33), (1, 0)])
def test_barriers_that_count(library, memory, threads, limit):
    out = memory(np.zeros(3, np.int32))
    assert library.run_count(out.data, threads, limit) == SUCCESS
    assert out.get().tolist() == [limit, int(limit > 0), int(limit == threads)]


@pytest.mark.parametrize("width", [32, 16, 8, 2])
@pytest.mark.parametrize("amount", [0, 1, 3, 7, 16, 31])
def test_shuffles_and_votes(library, memory, amount, width):
    out = memory(np.zeros((8, 32), np.int32))
    assert library.run_shuffle(out.data, amount, width) == SUCCESS
    lane = np.arange(32)
    first = lane // width * width
    up, down, crossed = lane - amount, lane + amount, lane ^ amount
    bits = sum(1 << i for i in range(0, 32, 3))
    groups = [sum(1 << j for j in range(32) if j // 5 == i // 5) for i in range(32)]
    expected = [
        100 + first + amount % width,
        100 + np.where(up < first, lane, up),
        100 + np.where(down >= first + width, lane, down),
        100 + np.where(crossed >= first + width, lane, crossed),
        np.full(32, bits).astype(np.uint32).astype(np.int32),
        np.ones(32),
        np.zeros(32),
        np.array(groups).astype(np.uint32).astype(np.int32),
    ]
    np.testing.assert_array_equal(out.get(), expected)


def test_halves_of_a_warp_go_their_own_ways_and_meet_again(library, memory):
    out = memory(np.zeros(32, np.int32))
    assert library.run_halves(out.data) == SUCCESS
    lane = np.arange(32)
    np.testing.assert_array_equal(out.get(), np.where(lane < 16, lane ^ 1, lane ^ 2) + 31)


def test_atomics_add_up_over_blocks(library, memory):
    out = memory(np.zeros(1, np.uint64))
    assert library.run_sum(out.data, 7, 96) == SUCCESS
    assert out.get()[0] == 7 * 96 * 95 // 2


WRONG = {
    "EXITS": (64, ["thread (0,0,0) waits at __syncthreads", "thread (3,0,0) has exited"]),
    "OTHER_BARRIER": (64, ["thread (32,0,0)", "calls __syncthreads", "thread (0,0,0) waits at"]),
    "BARRIER_AND_SHUFFLE": (
        32,
        ["thread (0,0,0) waits at __shfl_sync", "thread (7,0,0) waits at __syncthreads"],
    ),
    "LANE_MISSING": (64, ["waits at __shfl_sync", "0xffffffff", "thread (9,0,0) has exited"]),
    "OTHER_MASK": (32, ["thread (1,0,0) waits at __shfl_sync", "thread (0,0,0) has exited"]),
    "NOT_NAMED": (32, ["thread (1,0,0)", "mask 0x1", "does not name its own lane 1"]),
    "READS_INACTIVE": (32, ["lane 4 reads lane 8", "mask 0xff"]),
    "PARTIAL_WARP": (48, ["thread (32,0,0)", "mask 0xffffffff", "only lanes 0xffff"]),
    "WIDTH": (32, ["width is 24"]),
    "DEADLOCK_OF_HALVES": (32, ["waits at __syncwarp", "waits at __any_sync"]),
}


@pytest.mark.parametrize("how", list(WRONG))
def test_threads_that_wait_in_vain_are_named(library, monkeypatch, how):
    threads, parts = WRONG[how]
    text = refused(library, library.run_wrong(list(WRONG).index(how), threads))
    for part in ["wrong_kernel", "block (0,0,0)", *parts]:
        assert part in text, text
    if how not in ("NOT_NAMED", "READS_INACTIVE", "WIDTH", "PARTIAL_WARP"):
        assert "waiting.cu:" in text, text
    for order in ("reverse", "5"):
        monkeypatch.setenv("SPT_EMULATED_ORDER", order)
        assert library.run_wrong(list(WRONG).index(how), threads) == LAUNCH_FAILURE
    monkeypatch.delenv("SPT_EMULATED_ORDER")
    assert library.last_error() == SUCCESS


# ---- memory ---


def test_shared_memory_is_poisoned_before_every_block(library, memory):
    out = memory(np.zeros(32, np.uint32))
    assert library.run_uninitialised(out.data) == SUCCESS
    assert np.isnan(out.get().view(np.float32)).all()
    assert np.isnan(out.get().view(np.float16)).all()


@pytest.mark.parametrize("bytes_", [4, 100, 128, 1024, 48 * 1024])
def test_writes_outside_shared_memory_are_found(library, bytes_):
    n = bytes_ // 4
    assert library.run_shared(n - 1, bytes_) == SUCCESS
    for at in (n, n + 200, -1, -256):
        text = refused(library, library.run_shared(at, bytes_))
        assert f"outside its {bytes_} bytes of shared memory, at byte {4 * at}" in text
        assert "shared_kernel" in text
        assert "block (0,0,0)" in text


def test_more_shared_memory_is_to_be_asked_for(library, monkeypatch):
    assert library.run_much_shared(0, 49 * 1024) == INVALID_VALUE
    assert library.run_much_shared(64 * 1024, 49 * 1024) == SUCCESS
    assert library.run_much_shared(64 * 1024, 65 * 1024) == INVALID_VALUE
    limit = library.attribute(97)
    assert limit == 163 * 1024
    assert library.run_much_shared(limit, limit) == SUCCESS
    assert library.run_much_shared(limit + 1, limit) == INVALID_VALUE
    monkeypatch.setenv("SPT_EMULATED_CAPABILITY", "75")
    assert library.attribute(97) == 64 * 1024
    assert (library.attribute(75), library.attribute(76)) == (7, 5)
    assert library.run_much_shared(65 * 1024, 0) == INVALID_VALUE


@pytest.mark.parametrize("n", [1, 64, 65, 1000])
def test_writes_outside_device_memory_are_found(library, memory, n):
    x = memory(np.zeros(n, np.int32))
    assert library.run_fill(x.data, 0, n, 5) == SUCCESS
    assert (x.get() == 5).all()
    text = refused(library, library.run_fill(x.data, 0, n + 1, 5))
    assert "fill_kernel" in text
    assert f"wrote at byte {4 * n} of cudaMalloc" in text
    assert f"of {4 * n} bytes" in text
    text = refused(library, library.run_fill(x.data, -2, 1, 5))
    assert "wrote 8 bytes before cudaMalloc" in text
    assert library.run_fill(x.data, 0, n, 6) == SUCCESS  # nothing is left of it


def test_writes_to_freed_memory_are_found(library):
    data = ctypes.c_void_p(library.take(400))
    assert library.give(data) == SUCCESS
    assert library.run_fill(data, 3, 4, 5) == SUCCESS
    more = [ctypes.c_void_p(library.take(20 << 20)) for _ in range(2)]
    codes = [library.give(piece) for piece in more]
    assert ILLEGAL_ADDRESS in codes
    text = library.text_of(ILLEGAL_ADDRESS).decode()
    assert "wrote after it was freed at byte 12 of" in text
    library.last_error()


def test_memory_is_freed_once_and_copied_within_its_bounds(library, memory):
    x = Memory(library, np.zeros(10, np.int32))
    host = np.zeros(20, np.int32)
    assert library.copy(x.data, host.ctypes.data, 44, TO_DEVICE) == INVALID_VALUE
    assert "past an allocation" in library.text_of(INVALID_VALUE).decode()
    assert library.copy(host.ctypes.data, x.data, 44, TO_HOST) == INVALID_VALUE
    assert library.copy(host.ctypes.data, host.ctypes.data, 4, TO_HOST) == INVALID_VALUE
    assert library.memory_type(x.data) == 2
    assert library.memory_type(host.ctypes.data) == 0
    assert x.free() == SUCCESS
    assert x.free() == INVALID_VALUE
    assert library.copy(host.ctypes.data, x.data, 4, TO_HOST) == INVALID_VALUE
    library.last_error()


@pytest.mark.parametrize("grid", [(0, 1, 32), (1, 65536, 32), (1, 1, 0), (1, 1, 1025)])
def test_grids_that_no_device_takes(library, grid):
    text = refused(library, library.run_config(*grid), BAD_CONFIGURATION)
    assert f"grid ({grid[0]},{grid[1]},1)" in text


# ---- graphs ---


def test_graphs_replay_what_was_captured(library):
    host = np.arange(1, 101, dtype=np.int32)
    out = np.zeros((2, 100), np.int32)
    args = ctypes.c_void_p(host.ctypes.data), ctypes.c_void_p(out.ctypes.data)
    assert library.run_graph(*args, 100) == SUCCESS
    np.testing.assert_array_equal(out[0], 6 * np.arange(1, 101))
    np.testing.assert_array_equal(out[1], -6 * np.arange(100))


WRONG_CAPTURES = {
    "synchronises": 901,
    "allocates": 901,
    "leaves a stream unjoined": 904,
    "uses the legacy stream": 901,
    "nothing wrong": SUCCESS,
    "ends on another stream": 903,
    "ends in another thread": 908,
    "another thread waits for the device": 901,
    "relaxed, ends on another stream": 903,
    "relaxed, ends in another thread": SUCCESS,
    "relaxed, another thread waits for the device": 901,
    "relaxed, allocates": SUCCESS,
}


@pytest.mark.parametrize("how", list(WRONG_CAPTURES))
def test_captures_refuse_what_cuda_refuses(library, how):
    before = counted(library)
    assert library.run_wrong_capture(list(WRONG_CAPTURES).index(how)) == WRONG_CAPTURES[how]
    assert library.last_error() == SUCCESS
    after = counted(library)
    assert {name: after[name] for name in LEFT} == {name: before[name] for name in LEFT}


def test_what_a_graph_did_is_counted(library, memory):
    x, before = memory(np.zeros(50, np.int32)), counted(library)
    assert library.run_captured_fill(x.data, 50) == SUCCESS
    assert (x.get() == 7).all()
    after = counted(library)
    more = {name: after[name] - before[name] for name in before}
    assert {name for name, n in more.items() if n} == {"launches", "captures", "replays"}
    assert library.spt_emulated_count(b"kernels") == -1


@pytest.mark.parametrize("launched", [0, 1])
def test_graphs_that_were_destroyed(library, launched):
    assert "was destroyed" in refused(
        library, library.run_destroyed_graph(launched), expected=INVALID_VALUE
    )


def test_a_replay_is_held_to_the_kernels_limit(library, memory):
    x = memory(np.zeros(32, np.int32))
    assert library.run_graph_with_less_shared(x.data, 101 * 1024) == SUCCESS
    np.testing.assert_array_equal(x.get(), np.arange(32))
    assert library.run_graph_with_less_shared(x.data, 60 * 1024) == INVALID_VALUE


# ---- failures that are asked for ---


def test_injected_failures(library, memory, monkeypatch):
    x = memory(np.zeros(4, np.int32))
    monkeypatch.setenv("SPT_EMULATED_FAULTS", "alloc:2,launch:3")
    taken = [library.take(8) for _ in range(3)]
    assert [piece is None for piece in taken] == [False, True, False]
    assert library.last_error() == OUT_OF_MEMORY
    codes = [library.run_fill(x.data, 0, 4, 1) for _ in range(4)]
    assert codes == [SUCCESS, SUCCESS, LAUNCH_FAILURE, SUCCESS]
    for piece in (taken[0], taken[2]):
        assert library.give(piece) == SUCCESS

    for fault, code in [("capture:2", 901), ("instantiate:2", 2), ("replay:2", 2)]:
        monkeypatch.setenv("SPT_EMULATED_FAULTS", fault)
        before = counted(library)
        codes = [library.run_captured_fill(x.data, 4) for _ in range(3)]
        assert codes == [SUCCESS, code, SUCCESS]
        after = counted(library)
        assert {name: after[name] for name in LEFT} == {name: before[name] for name in LEFT}

    monkeypatch.setenv("SPT_EMULATED_FAULTS", "memory:1000000")
    assert library.take(1_000_001) is None
    assert library.last_error() == OUT_OF_MEMORY
    assert library.give(library.take(1000)) == SUCCESS

    monkeypatch.setenv("SPT_EMULATED_FAULTS", "devices:0")
    assert library.devices() == -NO_DEVICE
    assert library.run_fill(x.data, 0, 4, 1) == NO_DEVICE
    monkeypatch.setenv("SPT_EMULATED_FAULTS", "driver:11040")
    assert library.devices() == -OLD_DRIVER
    monkeypatch.setenv("SPT_EMULATED_FAULTS", "devices:3")
    assert library.devices() == 3
    monkeypatch.delenv("SPT_EMULATED_FAULTS")
    assert library.devices() == 1
    library.last_error()


# ---- tensor cores ---


def bits_of(values: np.ndarray, kind: int) -> np.ndarray:
    """float32 values that the kind holds exactly, as its 16 bits (or TF32's 32)."""
    if kind == 0:
        return values.astype(np.float16).view(np.uint16).astype(np.uint32)
    bits = values.astype(np.float32).view(np.uint32)
    return bits >> 16 if kind == 1 else bits


def exact(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Values of few bits, so that any order of sums gives the same."""
    return rng.integers(-16, 17, shape).astype(np.float32) / 8


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["float16", "bfloat16", "tf32"])
def test_products_in_the_layout_that_ptx_defines(library, memory, kind):
    rng = np.random.default_rng(kind)
    depth = 8 if kind == 2 else 16
    for _ in range(5):
        a, b, c = exact(rng, (16, depth)), exact(rng, (depth, 8)), exact(rng, (16, 8))
        a_bits, b_bits = bits_of(a, kind), bits_of(b, kind)
        a_lanes, b_lanes = np.zeros((32, 4), np.uint32), np.zeros((32, 2), np.uint32)
        c_lanes = np.zeros((32, 4), np.float32)
        # Written out from PTX ISA's tables, register by register.
        for lane in range(32):
            g, t = lane >> 2, lane % 4
            if kind == 2:
                a_lanes[lane] = [
                    a_bits[g, t],
                    a_bits[g + 8, t],
                    a_bits[g, t + 4],
                    a_bits[g + 8, t + 4],
                ]
                b_lanes[lane] = [b_bits[t, g], b_bits[t + 4, g]]
            else:
                for register, (row, column) in enumerate(
                    [(g, 2 * t), (g + 8, 2 * t), (g, 2 * t + 8), (g + 8, 2 * t + 8)]
                ):
                    a_lanes[lane, register] = a_bits[row, column] | a_bits[row, column + 1] << 16
                for register, row in enumerate([2 * t, 2 * t + 8]):
                    b_lanes[lane, register] = b_bits[row, g] | b_bits[row + 1, g] << 16
            c_lanes[lane] = [c[g, 2 * t], c[g, 2 * t + 1], c[g + 8, 2 * t], c[g + 8, 2 * t + 1]]
        sums = memory(c_lanes)
        assert library.run_product(kind, memory(a_lanes).data, memory(b_lanes).data, sums.data) == 0
        got, expected = sums.get(), c + a @ b
        for lane in range(32):
            g, t = lane >> 2, lane % 4
            np.testing.assert_array_equal(got[lane, :2], expected[g, 2 * t : 2 * t + 2])
            np.testing.assert_array_equal(got[lane, 2:], expected[g + 8, 2 * t : 2 * t + 2])


@pytest.mark.parametrize("trans", [0, 1])
@pytest.mark.parametrize("tiles", [1, 2, 4])
def test_ldmatrix_layouts(library, memory, tiles, trans):
    rng = np.random.default_rng(tiles + trans)
    pitch, n = 48, 64  # bytes from row to row, rows
    halves = np.arange(n * pitch // 2, dtype=np.uint16)
    rows = rng.permutation(n)[:32].astype(np.int32) * pitch + 16 * rng.integers(0, 3, 32)
    out = memory(np.zeros((32, 4), np.uint32))
    given = memory(halves), memory(rows.astype(np.int32))
    code = library.run_ldmatrix(tiles, trans, given[0].data, n * pitch, given[1].data, out.data)
    assert code == SUCCESS
    for lane in range(32):
        for i in range(tiles):
            tile = np.stack([halves[rows[8 * i + r] // 2 :][:8] for r in range(8)])
            tile = tile.T if trans else tile
            pair = tile[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2].astype(np.uint32)
            assert out.get()[lane, i] == pair[0] | pair[1] << 16


def test_ldmatrix_rows_are_in_shared_memory_and_aligned(library, memory):
    out, given = memory(np.zeros((32, 4), np.uint32)), memory(np.zeros(1024, np.uint8))
    for row, text in [(8, "multiple of 16"), (1024, "names byte 1024 of 1024"), (-16, "byte -16")]:
        rows = np.zeros(32, np.int32)
        rows[9] = row
        code = library.run_ldmatrix(4, 0, given.data, 1024, memory(rows).data, out.data)
        said = refused(library, code)
        assert text in said, said
        assert "lane 9" in said


@pytest.mark.parametrize("used", [0, 4, 10, 16])
def test_asynchronous_copies_arrive_when_they_are_waited_for(library, memory, used):
    values = np.arange(1, 129, dtype=np.uint32).reshape(32, 4)
    given, out = memory(values), memory(np.zeros((3, 3, 32, 4), np.uint32))
    assert library.run_copies(given.data, out.data, used) == SUCCESS
    got = out.get()
    poison = np.uint32(0xFFF5FFF5)
    for group in range(3):
        for waited in range(3):
            seen = got[waited, group]
            if waited < group:
                assert (seen == poison).all()
            elif group == 1:
                assert (seen[:, 0] == values[:, 0]).all()
                assert (seen[:, 1] == poison).all()
                assert (seen[:, 2:] == values[:, 2:]).all()
            else:
                expected = values.copy().view(np.uint8).reshape(32, 16)
                expected[:, used if group == 2 else 16 :] = 0
                np.testing.assert_array_equal(seen, expected.view(np.uint32))


@pytest.mark.parametrize(
    ("to", "source", "text"),
    [
        (8, 0, "multiple of 16"),
        (0, 4, "no multiple"),
        (64, 0, "byte 64 of 64"),
        (-16, 0, "byte -16"),
    ],
)
def test_asynchronous_copies_that_are_wrong(library, memory, to, source, text):
    given = memory(np.zeros(64, np.uint8))
    assert text in refused(library, library.run_wrong_copy(given.data, to, source))
