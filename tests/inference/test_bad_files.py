"""Damaged, lying and foreign files: one message that names the file and what is wrong."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spatile.inference import Encoder
from spatile.sparsity import Plan

from .conftest import TEXTS, make_model, prune, save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(make_model("bert"), tmp_path / "model")


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    model = make_model("bert")
    plan = Plan.uniform("tile", 0.5)
    prune(model, plan)
    Encoder.load(save(model, tmp_path / "hf"), plan=plan).save(tmp_path / "packed")
    return tmp_path / "packed"


def edit(path: Path, **changes: object) -> None:
    data = json.loads(path.read_text())
    data.update(changes)
    path.write_text(json.dumps(data))


def test_missing_folder_and_files(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Encoder.load(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors.*safe_serialization"):
        Encoder.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        Encoder.load(folder)


@pytest.mark.parametrize("keep", [0, 7, 100, 5000])
def test_truncated_safetensors(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
        Encoder.load(folder)


def test_lying_safetensors_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    name = "bert.encoder.layer.0.output.dense.weight"
    header[name]["shape"] = [64, 1 << 40]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
        Encoder.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intermediate_size": 96}, r"intermediate\.dense\.weight has shape \(128, 64\), expected"),
        ({"hidden_size": 32}, r"has shape .* expected"),
        ({"num_hidden_layers": 1}, r"encoder\.layer\.1\S* is there, expected 1 layers"),
        ({"type_vocab_size": 0}, "type_vocab_size is 0, expected an integer of at least 1"),
        ({"layer_norm_eps": None}, "layer_norm_eps is None, expected a number"),
        ({"id2label": {"0": "a"}}, "id2label has 1 labels, expected 3"),
        ({"num_hidden_layers": 9}, r"encoder\.layer\.3\.\S+ is missing"),
        ({"vocab_size": 41}, r"word_embeddings\.weight has shape"),
        ({"num_attention_heads": 5}, "not a multiple of 5 attention heads"),
        ({"hidden_size": -1}, "hidden_size or dim is -1, expected a positive integer"),
    ],
)
def test_config_that_disagrees_with_the_weights(
    folder: Path, change: dict[str, int], message: str
) -> None:
    edit(folder / "config.json", **change)
    with pytest.raises(ValueError, match=message):
        Encoder.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "t5"}, "model_type is 't5', expected one of bert"),
        ({"hidden_act": "silu"}, "activation is 'silu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is true"),
    ],
)
def test_models_that_the_engine_does_not_compute(
    folder: Path, change: dict[str, object], message: str
) -> None:
    edit(folder / "config.json", **change)
    with pytest.raises(NotImplementedError, match=message):
        Encoder.load(folder)


def test_config_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        Encoder.load(folder)


def test_packed_manifest_of_a_newer_version(packed: Path) -> None:
    edit(packed / "spatile.json", version=4)
    with pytest.raises(ValueError, match=r"version is 4, expected at most 3: .* newer spatile"):
        Encoder.load(packed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "format is 'other'"),
        ({"version": "1"}, "version is '1'"),
        ({"config": None}, "config is missing"),
        ({"matrices": []}, "matrices is missing"),
        ({"matrices": {"encoder.layer.0.output.dense": {}}}, "damaged"),
        (
            {"matrices": {"nowhere": {"pattern": "tile:16x16", "shape": [64, 64]}}},
            r"nowhere\.mask is missing",
        ),
        (
            {
                "matrices": {
                    "encoder.layer.0.output.dense": {"pattern": "tile:16x16", "shape": [999, 128]}
                }
            },
            "does not fit 999 x 128",
        ),
    ],
)
def test_packed_manifest_that_lies(packed: Path, change: dict[str, object], message: str) -> None:
    edit(packed / "spatile.json", **change)
    with pytest.raises(ValueError, match=message):
        Encoder.load(packed)


def test_packed_models_take_no_other_plan(packed: Path) -> None:
    with pytest.raises(ValueError, match="has its own plan"):
        Encoder.load(packed, plan=Plan.uniform("tile", 0.5))


def test_bad_calls(folder: Path) -> None:
    encoder = Encoder.load(folder)
    with pytest.raises(ValueError, match="ids holds a number outside"):
        encoder.forward([[-1]])
    with pytest.raises(TypeError, match="ids holds float, expected integers"):
        encoder.forward([[4.0]])
    with pytest.raises(ValueError, match="max_tokens is 3, expected more than the 3 special"):
        encoder.tokenize(["a"], ["b"], max_tokens=3)
    with pytest.raises(ValueError, match=r"ids\[0\] is 40, expected 0 to 39"):
        encoder.forward([[40]])
    with pytest.raises(ValueError, match=r"types\[1\] is 2, expected 0 to 1"):
        encoder.forward([[4, 5]], [[0, 2]])
    with pytest.raises(ValueError, match="97 tokens, expected at most 96"):
        encoder.forward([[4] * 97])
    with pytest.raises(ValueError, match="types has other lengths than ids"):
        encoder.forward([[4, 5], [6]], [[0], [0, 0]])
    with pytest.raises(TypeError, match="texts is one string"):
        encoder.predict("the cat")
    with pytest.raises(TypeError, match=r"texts\[1\] is a int, expected a string"):
        encoder.predict(["a", 3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"pairs\[0\] holds '\\udcff' \(character 2\), half of a"):
        encoder.encode(["a"], ["a \udcff"])  # as an argument that is not UTF-8 comes in
    with pytest.raises(ValueError, match="pairs has 1 entries, expected 4"):
        encoder.predict(TEXTS, ["a"])
    with pytest.raises(ValueError, match="batch_size is 0"):
        encoder.predict(TEXTS, batch_size=0)
    with pytest.raises(ValueError, match="device is 'tpu', expected 'cpu', 'cuda' or 'cuda:N'"):
        Encoder.load(folder, device="tpu")
    with pytest.raises(ValueError, match="compute is 'int8'"):
        Encoder.load(folder, compute="int8")


def test_predict_without_a_head_or_a_tokenizer(tmp_path: Path) -> None:
    make_model("bert").base_model.save_pretrained(tmp_path)
    encoder = Encoder.load(tmp_path)
    with pytest.raises(ValueError, match="needs a classification head"):
        encoder.predict(TEXTS)
    with pytest.raises(ValueError, match="no tokenizer"):
        encoder.encode(TEXTS)


def test_a_save_that_fails_at_the_manifest_leaves_the_old_model_whole(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in packed.iterdir()}
    other = Encoder.load(save(make_model("bert"), tmp_path / "other"))

    def fail(path: Path, data: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("spatile.inference.packed.write_json", fail)
    with pytest.raises(OSError, match="No space left"):
        other.save(packed)
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in packed.iterdir()} == before
    other.save(packed)
    assert Encoder.load(packed).summary() == other.summary()
    assert len(list(packed.glob("*.safetensors"))) == 1


def test_saving_and_exporting_never_mix_two_kinds_of_folder(packed: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="holds a checkpoint, expected another folder"):
        Encoder.load(folder).save(folder)
    with pytest.raises(ValueError, match="holds a packed model, expected another"):
        Encoder.load(packed).export(packed)
    Encoder.load(folder)
    Encoder.load(packed)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_damaged_tokenizer(folder: Path, name: str) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / name).write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=f"{name}: not a tokenizer"):
        Encoder.load(folder)


def test_a_full_disk_leaves_the_packed_model_as_it_was(
    packed: Path,
) -> None:
    """A limit on file sizes stands in for a full disk: both fail inside write()."""
    before = {p.name: p.read_bytes() for p in packed.iterdir()}
    code = (
        "import resource, signal, sys; from spatile.inference import Encoder; "
        f"e = Encoder.load({str(packed)!r}); signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); "
        f"e.save({str(packed)!r})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    assert "OSError" in run.stderr
    assert {p.name: p.read_bytes() for p in packed.iterdir()} == before


def test_half_precision_checkpoints_load(tmp_path: Path) -> None:
    model = make_model("bert")
    exact = Encoder.load(save(model, tmp_path / "f32")).forward([[4, 5, 6]])[0]
    import torch

    for dtype, tolerance in ((torch.bfloat16, 0.1), (torch.float16, 0.02)):
        folder = save(make_model("bert").to(dtype), tmp_path / str(dtype))
        np.testing.assert_allclose(
            Encoder.load(folder).forward([[4, 5, 6]])[0], exact, atol=tolerance
        )
