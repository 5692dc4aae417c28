"""A whole encoder on a GPU gives what the CPU gives, whatever is pruned or dropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from transformers import BertConfig, BertForSequenceClassification

from spatile.inference import Encoder
from spatile.sparsity import Schedule
from tests.device.conftest import Run
from tests.inference.conftest import make_model, plans, prune, save

LENGTHS = (17, 1, 40, 5)
TOKENS = Schedule.per_layer([1, 0.6, 0.3])
HEADS = Schedule.per_layer([1, 0.75, 0.5])


def random_ids() -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [rng.integers(4, 40, n).tolist() for n in LENGTHS]


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("kind", ["dense", "tile", "row", "element, sparse", "merged"])
def test_hidden_states_are_the_cpus(kind: str, first_only: bool, gpu: str, tmp_path: Path) -> None:
    model = make_model("bert")
    plan = None if kind == "dense" else plans(model)[kind]
    if plan is not None:
        prune(model, plan)
    folder = save(model, tmp_path)
    there, here = (Encoder.load(folder, plan=plan, device=d) for d in (gpu, "cpu"))
    assert there.device == gpu
    for encoder in (there, here):
        encoder.tokens, encoder.heads = None, None
    got, expected = (e.run(random_ids(), first_only=first_only) for e in (there, here))
    assert_allclose(got.hidden, expected.hidden, atol=2e-5)
    for encoder in (there, here):
        encoder.tokens, encoder.heads = TOKENS, HEADS
    got, expected = (e.run(random_ids(), first_only=first_only) for e in (there, here))
    assert_array_equal(got.positions, expected.positions)
    assert_array_equal(got.kept.heads, expected.kept.heads)
    assert_allclose(got.hidden, expected.hidden, atol=2e-5)


@pytest.mark.parametrize("first_only", [False, True])
def test_long_sequences_and_many(first_only: bool, gpu: str, tmp_path: Path) -> None:
    """A block that selects tokens takes 256 at a time, one that selects heads 64 sequences."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=320, num_labels=2,
    )  # fmt: skip
    folder = save(BertForSequenceClassification(config).eval(), tmp_path)
    rng = np.random.default_rng(3)
    ids = [rng.integers(4, 40, n).tolist() for n in (300, 257, 1, 256, *[3] * 64)]
    got, expected = (
        Encoder.load(folder, device=d, tokens=TOKENS, heads=HEADS).run(ids, first_only=first_only)
        for d in (gpu, "cpu")
    )
    assert_array_equal(got.positions, expected.positions)
    assert_array_equal(got.kept.heads, expected.kept.heads)
    assert_allclose(got.hidden, expected.hidden, atol=2e-5)


def test_bfloat16_and_a_batch_as_its_inputs_one_by_one(gpu: str, tmp_path: Path) -> None:
    folder = save(make_model("bert"), tmp_path)
    encoder = Encoder.load(folder, device=gpu, compute="bfloat16", tokens=TOKENS, heads=HEADS)
    exact = Encoder.load(folder, tokens=TOKENS, heads=HEADS)
    ids = random_ids()
    together = encoder.run(ids)
    for i, row in enumerate(ids):
        alone = encoder.run([row])
        part = slice(together.offsets[i], together.offsets[i + 1])
        assert_array_equal(together.positions[part], alone.positions)
        assert_allclose(together.hidden[part], alone.hidden, atol=1e-6)
    assert np.abs(encoder.run(ids[:1]).hidden - exact.run(ids[:1]).hidden).mean() < 0.03


def test_importance_that_cannot_be_ordered_is_refused_and_the_next_run_goes_on(
    gpu: str, tmp_path: Path
) -> None:
    model = make_model("bert")
    model.bert.embeddings.word_embeddings.weight.data[7] = np.nan
    encoder = Encoder.load(save(model, tmp_path), device=gpu, tokens=TOKENS)
    with pytest.raises(ValueError, match="encoder: layer 0: the importance of tokens or heads is"):
        encoder.run([[4, 7, 5, 6], [4, 5]])
    assert np.isfinite(encoder.run([[4, 5, 6]]).hidden).all()


def test_a_gpu_that_is_not_there(run: Run, tmp_path: Path) -> None:
    folder = save(make_model("bert"), tmp_path)
    code = f"from spatile.inference import Encoder\nEncoder.load({str(folder)!r}, device='cuda')"
    done = run(code, SPATILE_CUDA_LIBRARY=str(tmp_path / "no.so"))
    assert "RuntimeError: encoder: cuda: no library at" in done.stderr
    done = run(code.replace("cuda", "tpu"))
    assert "ValueError: Encoder.load: device is 'tpu', expected 'cpu', 'cuda' or 'cuda:N'" in (
        done.stderr
    )
