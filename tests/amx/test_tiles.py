"""AMX's products without AMX: by emulation, and as the machine code that a release holds."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import spatile as sp
from tests.environments import checked

HERE = Path(__file__).resolve().parent
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"]
AMX = ["-mamx-tile", "-mamx-bf16"]
TIERS = sp.info()["cpu"]["tiers"]

pytestmark = pytest.mark.skipif(
    "avx512" not in TIERS, reason="the AMX tier is built on AVX-512, which this processor lacks"
)


def compiled(source: str, to: Path, *flags: str) -> ctypes.CDLL:
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-Wno-psabi"]
    form = ["-std=gnu11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=fast"]
    checked(["cc", *form, *warnings, *flags, HERE / source, "-o", to])
    return ctypes.CDLL(str(to))


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    to = tmp_path_factory.mktemp("emulated") / "products.so"
    return compiled("products.c", to, *AVX512, "-DSPATILE_EMULATE_AMX")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ctypes.CDLL]:
    """AMX's own instructions: run by the processor, or by a handler where it has none."""
    folder = tmp_path_factory.mktemp("machine")
    knows = subprocess.run(
        ["cc", *AMX, "-c", "-x", "c", "-", "-o", folder / "known.o"],
        input=b"#include <immintrin.h>\nvoid f(void) { _tile_zero(0); _tile_dpbf16ps(0, 1, 2); }",
        capture_output=True, check=False,
    )  # fmt: skip
    if knows.returncode != 0:
        pytest.skip("this compiler doesn't know AMX")
    library = compiled("products.c", folder / "products.so", *AVX512, *AMX)
    if "amx_tile" in Path("/proc/cpuinfo").read_text("utf-8"):
        if "amx_bf16" not in TIERS:
            pytest.skip("this process may not use the processor's AMX, or emulates it")
        yield library
        return
    trap = compiled("trap.c", folder / "trap.so", "-mfma")
    trap.install_trap()
    yield library
    trap.remove_trap()
    assert trap.trapped_instructions() > 0


@dataclass
class Strips:
    """Random weights in the layout of a tier with ``bf16_by_rows`` and granules of 8 pairs."""

    dense: np.ndarray
    run_ptr: np.ndarray
    value_ptr: np.ndarray
    run_start: np.ndarray
    run_len: np.ndarray
    values: np.ndarray


def bf16(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape).astype(ml_dtypes.bfloat16)


def random_strips(rng: np.random.Generator, n_strips: int, granules: int, kept: float) -> Strips:
    dense = bf16(rng, (n_strips * 16, granules * 16))
    run_ptr, value_ptr, starts, lengths, values = [0], [0], [], [], []
    for s in range(n_strips):
        keep = rng.random(granules) < kept
        rows = dense[16 * s : 16 * s + 16]
        rows[:, ~np.repeat(keep, 16)] = 0
        ends = np.flatnonzero(np.diff(np.r_[False, keep, False].astype(int)))
        for first, end in ends.reshape(-1, 2):
            starts.append(first * 8)
            lengths.append((end - first) * 8)
            for block in range(first, end, 2):
                values.append(rows[:, block * 16 : min(block + 2, end) * 16].ravel())
        run_ptr.append(len(starts))
        value_ptr.append(value_ptr[-1] + int(keep.sum()) * 8)
    return Strips(
        dense=dense,
        run_ptr=np.array(run_ptr, np.int64),
        value_ptr=np.array(value_ptr, np.int64),
        run_start=np.array(starts, np.int32),
        run_len=np.array(lengths, np.int32),
        values=np.concatenate([*values, np.zeros(0, ml_dtypes.bfloat16)]),
    )


def multiply(library: ctypes.CDLL, w: Strips, x: np.ndarray) -> np.ndarray:
    """(out, tokens) of x (in, tokens), tokens being whole panels; nothing else is written."""
    panels, pairs = x.shape[1] // 16, x.shape[0] // 2
    x_pairs = np.ascontiguousarray(x.reshape(pairs, 2, panels, 16).transpose(2, 0, 3, 1))
    y = np.full((panels + 1, len(w.dense), 16), np.nan, np.float32)
    library.multiply(
        ctypes.c_int64(len(w.dense) // 16),
        *(ctypes.c_void_p(a.ctypes.data) for a in (w.run_ptr, w.value_ptr, w.run_start)),
        *(ctypes.c_void_p(a.ctypes.data) for a in (w.run_len, w.values)),
        ctypes.c_int64(pairs), ctypes.c_int64(panels),
        *(ctypes.c_void_p(a.ctypes.data) for a in (x_pairs, y)),
    )  # fmt: skip
    assert np.isnan(y[panels]).all()
    return y[:panels].transpose(1, 0, 2).reshape(len(w.dense), -1)


CASES = [(p, k) for p in (1, 2, 3, 4, 5, 7, 12) for k in (0.0, 0.3, 0.8, 1.0)]


@pytest.mark.parametrize("library", ["emulated", "machine"])
@pytest.mark.parametrize(("panels", "kept"), CASES)
def test_products(library: str, panels: int, kept: float, request: pytest.FixtureRequest) -> None:
    rng = np.random.default_rng(panels)
    w, x = random_strips(rng, 3, 11, kept), bf16(rng, (176, panels * 16))
    exact = w.dense.astype(np.float64) @ x.astype(np.float64)
    got = multiply(request.getfixturevalue(library), w, x)
    np.testing.assert_allclose(got, exact, atol=1e-4)


def test_machine_code_gives_the_emulations_bits(
    emulated: ctypes.CDLL, machine: ctypes.CDLL
) -> None:
    rng = np.random.default_rng(0)
    w, x = random_strips(rng, 4, 48, 0.5), bf16(rng, (768, 7 * 16))
    np.testing.assert_array_equal(multiply(machine, w, x), multiply(emulated, w, x))


@pytest.mark.parametrize("library", ["emulated", "machine"])
def test_another_configuration_was_loaded(library: str, request: pytest.FixtureRequest) -> None:
    """As PyTorch may leave it on a thread that it shares with us."""
    chosen = request.getfixturevalue(library)
    rng = np.random.default_rng(1)
    w, x = random_strips(rng, 2, 5, 0.6), bf16(rng, (80, 32))
    expected = multiply(chosen, w, x)
    chosen.configure_otherwise()
    np.testing.assert_array_equal(multiply(chosen, w, x), expected)


# ---- the emulation itself -----------------------------------------------------------------------

Shape = tuple[int, int]
FULL: tuple[Shape, Shape, Shape] = ((16, 64), (16, 64), (16, 64))


def configuration(*shapes: Shape, palette: int = 1) -> bytes:
    """The 64 bytes for tiles 0, 1, ... of (rows, bytes of a row)."""
    bytes_of_rows = np.zeros(16, "<u2")
    rows = np.zeros(16, np.uint8)
    for i, (n, width) in enumerate(shapes):
        bytes_of_rows[i], rows[i] = width, n
    return bytes([palette, *[0] * 15]) + bytes_of_rows.tobytes() + rows.tobytes()


@pytest.fixture
def dot(emulated: ctypes.CDLL) -> Callable[..., np.ndarray]:
    def run(sum_: np.ndarray, a: np.ndarray, b: np.ndarray, config: bytes) -> np.ndarray:
        operands = [np.zeros((16, 16), np.float32), *np.zeros((2, 16, 32), ml_dtypes.bfloat16)]
        for operand, given in zip(operands, (sum_, a, b), strict=True):
            operand[: given.shape[0], : given.shape[1]] = given
        emulated.dot(config, *(ctypes.c_void_p(o.ctypes.data) for o in operands))
        return operands[0]

    return run


def paired(b: np.ndarray) -> np.ndarray:
    """(k, n) with rows 2 i and 2 i + 1 side by side in row i."""
    return np.ascontiguousarray(
        b.reshape(len(b) // 2, 2, -1).transpose(0, 2, 1).reshape(len(b) // 2, -1)
    )


def flushed(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(0, x), x).astype(np.float32)


def as_defined(sum_: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intel's definition of TDPBF16PS: the even and the odd products apart, each sum rounded.

    In extended precision a product and its sum with a float32 are exact for operands as here, so
    that rounding them once is a fused multiply-add.
    """
    parts = []
    for odd in (0, 1):
        part = np.zeros(sum_.shape, np.float32)
        for k in range(odd, len(b), 2):
            product = np.outer(a[:, k].astype(np.longdouble), b[k].astype(np.longdouble))
            part = flushed((part + product).astype(np.float32))
        parts.append(part)
    return flushed(sum_ + flushed(parts[0] + parts[1]))


@pytest.mark.parametrize(("m", "n", "k"), [(16, 16, 32), (16, 16, 16), (1, 16, 32), (5, 3, 14)])
def test_arithmetic_as_defined(dot: Callable[..., np.ndarray], m: int, n: int, k: int) -> None:
    rng = np.random.default_rng(k)
    for _ in range(20):
        sum_ = rng.standard_normal((m, n)).astype(np.float32)
        a, b = bf16(rng, (m, k)), bf16(rng, (k, n))
        got = dot(sum_, a, paired(b), configuration((m, 4 * n), (m, 2 * k), (k // 2, 4 * n)))
        np.testing.assert_array_equal(got[:m, :n], as_defined(sum_, a, b))
        assert not got[m:].any()
        assert not got[:, n:].any()


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        # 2^-133 is a denormal of bfloat16.
        ([2.0**-133, 0.0], [2.0**100, 0.0], 0.0),
        # A product below the smallest normal number, then one at it.
        ([2.0**-64, 0.0], [2.0**-63, 0.0], 0.0),
        ([2.0**-63, 0.0], [2.0**-63, 0.0], 2.0**-126),
        # Even and odd products meet at the end only, so 2^24 swallows no single 1 of the others.
        ([2.0**12, 1.0, 0.0, 1.0], [2.0**12, 1.0, 0.0, 1.0], 2.0**24 + 2),
        # In one chain it does: to nearest even.
        ([2.0**12, 0.0, 1.0, 0.0, 1.0, 0.0], [2.0**12, 0.0, 1.0, 0.0, 1.0, 0.0], 2.0**24),
        ([np.inf, 1.0], [1.0, -np.inf], np.nan),
        ([np.inf, 1.0], [0.0, 1.0], np.nan),
        ([2.0**127, 0.0], [2.0, 0.0], np.inf),
    ],
)
def test_arithmetic_at_its_edges(
    dot: Callable[..., np.ndarray], a: list[float], b: list[float], expected: float
) -> None:
    left = np.array([a], ml_dtypes.bfloat16)
    right = paired(np.array(b, ml_dtypes.bfloat16)[:, None])
    config = configuration((1, 4), (1, 2 * len(a)), (len(a) // 2, 4))
    got = dot(np.zeros((1, 1), np.float32), left, right, config)
    np.testing.assert_array_equal(got[0, 0], np.float32(expected))


FAULTS = {
    "the palette is not 1": configuration(*FULL, palette=2),
    "larger than the palette's": configuration((17, 64), *FULL[1:]),
    "no rows or no bytes": configuration((0, 64), *FULL[1:]),
    "a reserved byte": b"\1" + configuration(*FULL)[1:15] + b"\1" + configuration(*FULL)[16:],
    "the tile is not configured": configuration(*FULL[:2]),
    "don't fit each other": configuration(*FULL[:2], (8, 64)),
    "no tiles are configured": None,
}


@pytest.mark.parametrize("message", FAULTS)
def test_what_faults_there_aborts_here(emulated: ctypes.CDLL, message: str) -> None:
    config = FAULTS[message]
    call = "load_after_product(memory)" if config is None else f"dot({config!r}, *[memory] * 3)"
    code = (
        "import ctypes; memory = ctypes.create_string_buffer(1024); "
        f"ctypes.CDLL({emulated._name!r}).{call}"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == -6
    assert message in run.stderr
