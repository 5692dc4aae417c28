"""The core builds without the x86 tiers, without a warning, and for every Python that we name."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.environments import ROOT, BareEnvironment, checked, tool

SMOKE = """
import numpy as np, spatile as sp
from spatile import reference
assert sp.info()["cpu"]["tiers"] == ["scalar"], sp.info()
rng = np.random.default_rng(0)
x, w = (rng.standard_normal(s).astype(np.float32) for s in [(5, 40), (33, 40)])
mask = sp.prune_mask(w, pattern="tile", sparsity=0.5)
packed = sp.pack(w, mask)
assert np.allclose(sp.linear(x, packed), reference.linear(x, packed.to_dense()), atol=1e-4)
q, k, v = (rng.standard_normal((2, 7, 3, 16)).astype(np.float32) for _ in range(3))
for lengths in (None, np.array([7, 4])):
    got = sp.attention(q, k, v, causal=True, lengths=lengths)
    assert np.allclose(got, reference.attention(q, k, v, causal=True, lengths=lengths), atol=1e-5)
assert np.allclose(sp.gelu(x), reference.gelu(x), atol=1e-6)
assert np.allclose(sp.softmax(x), reference.softmax(x), atol=1e-6)
print("ok")
"""


def test_scalar_tier_alone(tmp_path: Path) -> None:
    """What a processor of another family gets; warnings are errors."""
    build = tmp_path / "build"
    checked(
        [
            *(tool("cmake"), "-S", ROOT, "-B", build, "-G", "Ninja"),
            *("-DSPATILE_SCALAR_ONLY=ON", "-DSPATILE_WERROR=ON"),
            *(f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DPython_EXECUTABLE={sys.executable}"),
        ]
    )
    checked([tool("cmake"), "--build", build])
    environment = BareEnvironment(tmp_path / "venv")
    installed = environment.packages / "spatile"
    shutil.copytree(ROOT / "python" / "spatile", installed)
    (extension,) = build.glob("_core*.so")
    shutil.copy(extension, installed)
    assert environment.run(SMOKE) == "ok\n"


def interpreter(version: str) -> str | None:
    """A Python of that version that runs and brings its headers; None where there is none."""
    found = [shutil.which(f"python{version}")]
    found += [str(p) for p in Path.home().glob(f".pyenv/versions/{version}.*/bin/python3")]
    code = (
        "import sys, sysconfig; "
        "print('%d.%d' % sys.version_info[:2], sysconfig.get_path('include'))"
    )
    for python in filter(None, found):
        run = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        name, _, include = run.stdout.strip().partition(" ")
        if run.returncode == 0 and name == version and Path(include, "Python.h").is_file():
            return include
    return None


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_binding_compiles_for_python(version: str, tmp_path: Path) -> None:
    """NumPy's headers are the same for every Python; Python's own are what differs."""
    include = interpreter(version)
    if include is None:
        pytest.skip(f"no Python {version} with headers here")
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    for source in sorted((ROOT / "csrc" / "binding").glob("*.c")):
        checked(["cc", *flags, f"-I{include}", f"-I{np.get_include()}", source])


def test_sources_parse_as_the_oldest_python() -> None:
    for source in sorted((ROOT / "python").rglob("*.py")):
        ast.parse(source.read_text("utf-8"), str(source), feature_version=(3, 10))
