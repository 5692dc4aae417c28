"""The package as others install it: version, wheel, metadata, pins."""

from __future__ import annotations

import re
import sys
import zipfile
from importlib.metadata import PathDistribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import spatile
from tests.environments import ROOT, BareEnvironment, checked

ALONE = """
import importlib.util, sys
for name in ("torch", "transformers", "tokenizers", "safetensors", "pytest"):
    assert importlib.util.find_spec(name) is None, name
import numpy as np, spatile as sp, spatile.reference, spatile.sparsity
x, w = np.ones((2, 32), np.float32), np.eye(32, dtype=np.float32)
assert (sp.linear(x, sp.pack(w)) == x).all()
print(sp.__version__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built in a folder of its own with the environment's build tools."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel"]
    options = ["--no-build-isolation", "--no-deps", "-C", f"build-dir={folder / 'build'}"]
    checked([*pip, *options, "-w", folder, ROOT])
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    own = {n for n in names if not n.startswith(f"spatile-{spatile.__version__}.dist-info/")}
    assert {"spatile/py.typed", "spatile/_core.pyi", "spatile/__init__.py"} <= own
    assert all(n.startswith("spatile/") for n in own)
    assert sum(n.startswith("spatile/_core.") and n.endswith(".so") for n in own) == 1
    assert not any("__pycache__" in n for n in own)
    assert any(n.endswith("/LICENSE") for n in names - own)


def test_wheel_imports_with_numpy_alone(wheel: Path, tmp_path: Path) -> None:
    environment = BareEnvironment(tmp_path / "venv")
    zipfile.ZipFile(wheel).extractall(environment.packages)
    assert environment.run(ALONE) == f"{spatile.__version__}\n"


def test_one_version_everywhere() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (stated,) = re.findall(r'^version = "(.+)"$', project, re.M)
    newest = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert newest is not None
    assert spatile.__version__ == stated == version("spatile") == newest.group(1)


@pytest.fixture(scope="module")
def requirements(wheel: Path) -> list[Requirement]:
    """What the wheel's metadata asks for."""
    (metadata,) = (p for p in zipfile.Path(wheel).iterdir() if p.name.endswith(".dist-info"))
    return [Requirement(r) for r in PathDistribution(metadata).requires or []]  # type: ignore[arg-type]


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    held = [r for r in found if r.marker is None or r.marker.evaluate()]
    return {canonicalize_name(r.name): r for r in held}


def test_metadata_gives_ranges_and_the_constraints_pin_them(
    requirements: list[Requirement],
) -> None:
    pinned = pins()
    for requirement in requirements:
        if requirement.name == "spatile":
            continue
        assert not any(s.operator in ("==", "===") for s in requirement.specifier), requirement
        pin = pinned[canonicalize_name(requirement.name)]
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert requirement.specifier.contains(exact.version), f"{pin} is not within {requirement}"


def test_metadata_admits_the_torch_and_transformers_promised(
    requirements: list[Requirement],
) -> None:
    stated = {r.name: r.specifier for r in requirements}
    assert stated["torch"].contains("2.6.0")
    assert stated["transformers"].contains("4.50.0")
    assert [r.name for r in requirements if r.marker is None] == ["numpy"]


def test_what_is_installed_is_what_is_pinned() -> None:
    """One torch, not two: the extras brought in nothing other than the constraints say."""
    for name in ("torch", "transformers", "numpy", "tokenizers", "safetensors"):
        (exact,) = pins()[name].specifier
        assert exact.contains(version(name)), f"{name} {version(name)} is installed, not {exact}"
