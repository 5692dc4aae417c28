"""Finding and loading the CUDA backend: each failure says which it is, in the loader's words."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import spatile as sp
from tests.device.conftest import ROOT, Run

REASON = "print(sp.devices()); print(sp.info()['gpu']['reason'])"


def compiled(folder: Path, text: str) -> str:
    """A small library made of C."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, made = folder / "small.c", folder / "small.so"
    source.write_text(text)
    command = [compiler, "-shared", "-fPIC", f"-I{ROOT / 'csrc'}", str(source), "-o", str(made)]
    subprocess.run(command, check=True)
    return str(made)


def test_a_missing_library_that_was_named(run: Run, tmp_path: Path) -> None:
    path = str(tmp_path / "nowhere.so")
    said = run(REASON, SPATILE_CUDA_LIBRARY=path).stdout
    assert said.splitlines()[0] == "('cpu',)"
    assert path in said
    assert "which SPATILE_CUDA_LIBRARY names (No such file or directory)" in said


def test_an_installation_without_the_backend(run: Run) -> None:
    if (Path(sp.__file__).parent / "libspatile_cuda.so").exists():
        pytest.skip("this one has it")
    said = run(REASON, SPATILE_CUDA_LIBRARY=None).stdout
    assert "no CUDA backend: no library at" in said
    assert "libspatile_cuda.so" in said


def test_a_file_that_is_no_library(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "text.so"
    path.write_text("not a library")
    said = run(REASON, SPATILE_CUDA_LIBRARY=str(path)).stdout
    assert "the library does not load" in said
    assert "file too short" in said or "invalid ELF header" in said  # dlopen's


def test_a_library_without_the_symbol(run: Run, tmp_path: Path) -> None:
    said = run(REASON, SPATILE_CUDA_LIBRARY=compiled(tmp_path, "int answer = 42;")).stdout
    assert "is not a backend of spatile" in said
    assert "undefined symbol: spt_backend_entry" in said


@pytest.mark.parametrize(
    ("version", "size"), [("SPT_BACKEND_ABI + 1", "0"), ("SPT_BACKEND_ABI", "8")]
)
def test_a_library_of_another_abi(run: Run, tmp_path: Path, version: str, size: str) -> None:
    text = f"""
        #include "backend.h"
        const spt_backend *spt_backend_entry(void) {{
          static const spt_backend table = {{.abi_version = {version},
                                            .size = sizeof(spt_backend) + {size}}};
          return &table;
        }}"""
    said = run(REASON, SPATILE_CUDA_LIBRARY=compiled(tmp_path, text)).stdout
    found = re.search(
        r"has ABI version (\d+) with a table of (\d+) bytes, expected version (\d+) with (\d+)",
        said,
    )
    assert found, said
    assert (int(found[1]), int(found[2])) != (int(found[3]), int(found[4]))


@pytest.mark.parametrize(
    ("fault", "words"),
    [("devices:0", "cudaErrorNoDevice"), ("driver:11000", "cudaErrorInsufficientDriver")],
)
def test_what_the_driver_says(run: Run, fault: str, words: str) -> None:
    done = run(REASON, SPT_EMULATED_FAULTS=fault)
    assert "looking for devices: " in done.stdout, done.stderr
    assert words in done.stdout
    done = run("sp.to_device(x)", SPT_EMULATED_FAULTS=fault)
    assert "RuntimeError: to_device: cuda: looking for devices" in done.stderr


def test_importing_and_computing_load_nothing(run: Run) -> None:
    code = "sp.gelu(x); print('libspatile' in open('/proc/self/maps').read())"
    assert run(code).stdout == "False\n"


def test_what_info_tells(run: Run, library: Path) -> None:
    done = run("import json; print(json.dumps(sp.info()))", SPT_EMULATED_CAPABILITY="90")
    told = json.loads(done.stdout)
    assert told["devices"] == ["cpu", "cuda:0"]
    assert told["gpu"]["available"]
    assert told["gpu"]["library"] == str(library)
    assert "cuBLAS" in told["gpu"]["cublas"]
    assert re.fullmatch(r"\d+\.\d+", told["gpu"]["driver"] + "")
    assert told["gpu"]["devices"][0]["compute_capability"] == "9.0"
    done = run("import sys; from spatile.cli.main import main; sys.exit(main(['info']))")
    assert "cuda:0 emulated" in done.stdout, done.stderr
    assert str(library) in done.stdout


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "", 0, "mps"])
def test_devices_that_are_none(device: object) -> None:
    with pytest.raises(ValueError, match="expected 'cpu', 'cuda' or 'cuda:N'"):
        sp.synchronize(device)  # type: ignore[arg-type]


def test_a_device_that_is_not_there(gpu: str) -> None:
    with pytest.raises(ValueError, match=r"there is no cuda:77, expected 0 to"):
        sp.synchronize("cuda:77")


def test_a_child_of_fork_is_refused_the_parents_device(run: Run) -> None:
    code = """
import os, sys
d = sp.to_device(x)
w = sp.pack(x).to('cuda')
pid = os.fork()
if pid == 0:
    for use in (lambda: sp.gelu(d), lambda: sp.to_device(x), d.numpy, lambda: sp.synchronize()):
        try:
            use()
        except RuntimeError as e:
            print(e, flush=True)
    print(sp.devices(), sp.gelu(x).shape, flush=True)  # the CPU is well
    del d, w
    os._exit(0)
print(os.waitpid(pid, 0)[1], sp.gelu(d).shape)
"""
    done = run(code)
    assert done.stdout.count("forked from") == 4, done.stdout + done.stderr
    assert "('cpu',) (4, 8)" in done.stdout
    assert "0 (4, 8)" in done.stdout
