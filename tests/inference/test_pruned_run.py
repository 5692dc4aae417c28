"""Cascade pruning in the engine: as defined, the same in any batch, and nothing where all stays."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import spatile as sp
from spatile.inference import Encoder
from spatile.sparsity import Plan, Schedule

from .conftest import PAIRS, TEXTS, make_model, plans, prune, save
from .pruned_run import pruned_run

N_LAYERS = {"bert": 3, "distilbert": 2, "roberta": 2}
FALLING = {
    "bert": (Schedule.per_layer([1, 0.6, 0.3]), Schedule.per_layer([1, 0.75, 0.5])),
    "distilbert": (Schedule.per_layer([1, 0.4]), Schedule.per_layer([1, 0.5])),
    "roberta": (Schedule.per_layer([1, 0.5]), Schedule.per_layer([1, 0.5])),
}


def random_ids(rng: np.random.Generator, lengths: list[int]) -> list[list[int]]:
    return [rng.integers(4, 20, n).tolist() for n in lengths]


# ---- what is kept, and what comes out


@pytest.mark.usefixtures("cpu_tier")
@pytest.mark.parametrize("first_only", [False, True])
def test_the_engine_does_what_the_definition_says(
    family: str, first_only: bool, tmp_path: Path
) -> None:
    model = make_model(family)
    tokens, heads = FALLING[family]
    encoder = Encoder.load(save(model, tmp_path), tokens=tokens, heads=heads)
    ids, types = encoder.tokenize(TEXTS, PAIRS)
    run = encoder.run(ids, types, first_only=first_only)
    n_heads, n_layers = model.config.num_attention_heads, N_LAYERS[family]
    for i, row in enumerate(ids):
        want = pruned_run(
            model, row, types[i],
            tokens.tokens(len(row), n_layers=n_layers),
            heads.heads(n_heads, n_layers=n_layers, length=len(row)),
        )  # fmt: skip
        assert want.margin > 1e-4, "too near a tie to compare"
        for layer in range(n_layers):
            assert run.kept.positions(layer, i).tolist() == want.tokens[layer]
            assert np.nonzero(run.kept.heads[layer, i])[0].tolist() == want.heads[layer]
        got = run.hidden[i : i + 1] if first_only else run.hidden[_rows(run, i)]
        expected = want.hidden.numpy()[:1] if first_only else want.hidden.numpy()
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)
        assert run.positions[_rows(run, i)].tolist() == want.tokens[-1]


def _rows(run: Any, i: int) -> slice:
    return slice(run.offsets[i], run.offsets[i + 1])


def test_protected_positions_stay(tmp_path: Path) -> None:
    model = make_model("bert")
    tokens, _ = FALLING["bert"]
    encoder = Encoder.load(save(model, tmp_path), tokens=tokens)
    ids, types = encoder.tokenize(TEXTS, PAIRS)
    n_heads = (model.config.num_attention_heads,) * 3
    run = encoder.run(ids, types, protect=(-1, 2))
    for i, row in enumerate(ids):
        want = pruned_run(
            model, row, types[i], tokens.tokens(len(row), n_layers=3), n_heads, (0, -1, 2)
        )
        assert want.margin > 1e-4
        assert run.kept.positions(2, i).tolist() == want.tokens[2]
        assert {0, 2, len(row) - 1} <= set(run.kept.positions(2, i).tolist())
    mask = np.zeros(int(sum(map(len, ids))), bool)
    mask[5] = True
    assert 5 in encoder.run(ids, types, protect=mask).kept.positions(2, 0)
    assert len(encoder.predict(TEXTS, PAIRS, protect=(-1,))) == len(TEXTS)
    in_twos = encoder.encode(TEXTS, PAIRS, protect=(-1, 2), batch_size=2)
    np.testing.assert_array_equal(in_twos.positions, run.positions)
    assert 12 in encoder.encode(TEXTS, PAIRS, protect=(-1,)).positions[:6]


# ---- the same in any batch, on any number of threads


_CACHE: dict[tuple[str, str], Path] = {}


def _folder(family: str, plan: str) -> tuple[Path, Plan | None]:
    model = make_model(family)
    chosen = plans(model).get(plan)
    if (family, plan) not in _CACHE:
        if chosen is not None:
            prune(model, chosen)
        _CACHE[family, plan] = save(model, Path(tempfile.mkdtemp()))
    return _CACHE[family, plan], chosen


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=9),
    keep=st.lists(st.floats(0.01, 1.0), min_size=2, max_size=2),
    keep_heads=st.lists(st.floats(0.01, 1.0), min_size=2, max_size=2),
    plan=st.sampled_from(["dense", "tile", "row", "element, dense", "merged", "attention-aware"]),
    compute=st.sampled_from(["float32", "bfloat16"]),
    first_only=st.booleans(),
    seed=st.integers(0, 99),
)
def test_batched_equals_one_by_one(
    lengths: list[int],
    keep: list[float],
    keep_heads: list[float],
    plan: str,
    compute: str,
    first_only: bool,
    seed: int,
) -> None:
    """Any keep, any lengths, any plan: the same tokens and heads, and the same bits."""
    folder, chosen = _folder("bert", plan)
    encoder = Encoder.load(
        folder, plan=chosen, compute=compute,
        tokens=Schedule.per_layer([1.0, *sorted(keep, reverse=True)]),
        heads=Schedule.per_layer([1.0, *sorted(keep_heads, reverse=True)]),
    )  # fmt: skip
    ids = random_ids(np.random.default_rng(seed), lengths)
    together = encoder.run(ids, first_only=first_only)
    for i, row in enumerate(ids):
        alone = encoder.run([row], first_only=first_only)
        np.testing.assert_array_equal(together.kept.heads[:, i], alone.kept.heads[:, 0])
        for layer in range(3):
            np.testing.assert_array_equal(
                together.kept.positions(layer, i), alone.kept.positions(layer, 0)
            )
        rows = slice(i, i + 1) if first_only else _rows(together, i)
        np.testing.assert_array_equal(together.hidden[rows], alone.hidden)


def test_batched_equals_one_by_one_but_for_rounding_in_sparse_rows() -> None:
    """Single sums of a CSR product are split over more registers where tokens are few."""
    folder, plan = _folder("bert", "element, sparse")
    encoder = Encoder.load(folder, plan=plan, tokens=FALLING["bert"][0], heads=FALLING["bert"][1])
    ids = random_ids(np.random.default_rng(3), [50, 3, 17, 90, 16, 1])
    together = encoder.run(ids)
    for i, row in enumerate(ids):
        alone = encoder.run([row])
        np.testing.assert_array_equal(together.positions[_rows(together, i)], alone.positions)
        np.testing.assert_allclose(together.hidden[_rows(together, i)], alone.hidden, atol=1e-5)


def test_threads_change_no_bit(tmp_path: Path) -> None:
    encoder = Encoder.load(
        save(make_model("bert"), tmp_path), tokens=FALLING["bert"][0], heads=FALLING["bert"][1]
    )
    ids = random_ids(np.random.default_rng(1), [50, 3, 17, 90, 16, 1])
    before = sp.num_threads()
    try:
        runs = []
        for threads in (1, 2, 3, 8):
            sp.set_num_threads(threads)
            runs.append(encoder.run(ids))
    finally:
        sp.set_num_threads(before)
    for run in runs[1:]:
        np.testing.assert_array_equal(run.hidden, runs[0].hidden)
        np.testing.assert_array_equal(run.positions, runs[0].positions)
        assert run.cost == runs[0].cost


# ---- where nothing is pruned


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    plan=st.sampled_from(["dense", "tile", "merged"]),
    compute=st.sampled_from(["float32", "bfloat16"]),
    first_only=st.booleans(),
)
def test_keeping_all_is_the_dense_run_bit_for_bit(
    lengths: list[int], plan: str, compute: str, first_only: bool
) -> None:
    folder, chosen = _folder("bert", plan)
    all_of_it = {"tokens": Schedule.linear(1.0), "heads": Schedule.per_layer([1, 1, 1])}
    ids = random_ids(np.random.default_rng(len(lengths)), lengths)
    runs = [
        Encoder.load(folder, plan=chosen, compute=compute, **options).run(
            ids, first_only=first_only
        )
        for options in ({}, all_of_it)
    ]
    np.testing.assert_array_equal(runs[0].hidden, runs[1].hidden)
    np.testing.assert_array_equal(runs[0].positions, runs[1].positions)
    assert runs[0].cost == runs[1].cost


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_an_input_that_keeps_all_is_as_without_the_others(compute: str, tmp_path: Path) -> None:
    """A short one among long ones of which tokens go: by length, as published."""
    folder = save(make_model("bert"), tmp_path)
    by_length = Schedule.by_length(lambda length: 1.0 if length < 20 else 0.5)
    dense = Encoder.load(folder, compute=compute)
    pruned = Encoder.load(folder, compute=compute, tokens=by_length)
    ids = random_ids(np.random.default_rng(0), [11, 80, 19, 41])
    run = pruned.run(ids)
    assert np.diff(run.offsets)[1] < 80
    for i in (0, 2):
        np.testing.assert_array_equal(run.hidden[_rows(run, i)], dense.run([ids[i]]).hidden)


# ---- with what else makes a model small


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(plans(make_model("bert"))))
def test_every_plan_composes(family: str, name: str, compute: str) -> None:
    model = make_model(family)
    folder, plan = _folder(family, name)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    tokens, heads = FALLING[family]
    packed = Encoder.load(folder, plan=plan, compute=compute, tokens=tokens, heads=heads)
    ids, types = packed.tokenize(TEXTS, PAIRS)
    run = packed.run(ids, types)
    assert np.isfinite(run.hidden).all()
    assert run.cost.actual.multiply_adds < packed_without(packed, ids, types)
    # Heads of merged layers are measured behind W_O; rounded scores may swap near neighbours.
    if compute == "bfloat16" or name == "merged":
        return
    n_layers, n_heads = N_LAYERS[family], model.config.num_attention_heads
    clear = 0
    for i, row in enumerate(ids):
        counts = heads.heads(n_heads, n_layers=n_layers, length=len(row))
        want = pruned_run(model, row, types[i], tokens.tokens(len(row), n_layers=n_layers), counts)
        if want.margin > 1e-5:
            clear += 1
            assert run.positions[_rows(run, i)].tolist() == want.tokens[-1]
            assert np.nonzero(run.kept.heads[-1, i])[0].tolist() == want.heads[-1]
            np.testing.assert_allclose(
                run.hidden[_rows(run, i)], want.hidden.numpy(), atol=1e-4, rtol=0
            )
    # Where whole Q or K go all tokens are equal but for rounding.
    assert clear >= 2 or name in ("tile", "head")


def packed_without(encoder: Encoder, ids: list[list[int]], types: list[list[int]]) -> int:
    tokens, heads = encoder.tokens, encoder.heads
    encoder.tokens = encoder.heads = None
    try:
        return encoder.run(ids, types).cost.actual.multiply_adds
    finally:
        encoder.tokens, encoder.heads = tokens, heads


# ---- results


def test_encode_gives_kept_tokens_with_their_positions(tmp_path: Path) -> None:
    folder = save(make_model("bert"), tmp_path)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    encoder = Encoder.load(folder, tokens=FALLING["bert"][0])
    ids, _ = encoder.tokenize(TEXTS)
    encoded = encoder.encode(TEXTS, batch_size=3)
    for i, row in enumerate(ids):
        part = slice(encoded.offsets[i], encoded.offsets[i + 1])
        positions = encoded.positions[part]
        assert len(positions) == FALLING["bert"][0].tokens(len(row), n_layers=3)[2]
        assert positions[0] == 0
        assert (np.diff(positions) > 0).all()
        np.testing.assert_allclose(encoded.pooled[i], encoded[i].mean(axis=0), atol=1e-6)


def test_inputs_of_one_token_and_of_none(tmp_path: Path) -> None:
    tokens, heads = FALLING["bert"]
    encoder = Encoder.load(save(make_model("bert"), tmp_path), tokens=tokens, heads=heads)
    run = encoder.run([[4], [], [5, 6], []])
    assert run.kept.counts.tolist() == [[1, 0, 2, 0]] + [[1, 0, 1, 0]] * 2
    assert run.positions.tolist() == [0, 0]
    assert np.isfinite(run.hidden).all()
    first = encoder.run([[4], [], [5, 6], []], first_only=True).hidden
    assert not first[[1, 3]].any()
    assert first[[0, 2]].any(axis=1).all()
    assert encoder.run([]).hidden.shape == (0, 64)


def test_equal_scores_keep_the_first(tmp_path: Path) -> None:
    """Without W_Q every token looks at all alike: the first ones stay."""
    model = make_model("bert")
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.self.query.weight.zero_()
            layer.attention.self.query.bias.zero_()
    encoder = Encoder.load(save(model, tmp_path), tokens=FALLING["bert"][0])
    run = encoder.run(random_ids(np.random.default_rng(0), [33, 20]))
    assert run.kept.positions(1, 0).tolist() == list(range(20))
    assert run.kept.positions(2, 1).tolist() == list(range(6))


# ---- what is refused


def test_bad_input_is_refused_by_name(tmp_path: Path) -> None:
    folder = save(make_model("bert"), tmp_path)
    with pytest.raises(ValueError, match=r"schedule: keep has 2 layers, expected 3"):
        Encoder.load(folder, tokens=Schedule.per_layer([1, 0.5]))
    with pytest.raises(ValueError, match=r"schedule: average is 0\.1, expected more than 0\.333"):
        Encoder.load(folder, heads=Schedule.linear(0.1))
    with pytest.raises(TypeError, match="Encoder: tokens is a float, expected a Schedule"):
        Encoder.load(folder, tokens=0.5)  # type: ignore[arg-type]
    encoder = Encoder.load(folder, tokens=FALLING["bert"][0])
    with pytest.raises(ValueError, match=r"protect holds position 5, sequence 1 has 3 tokens"):
        encoder.run([[4] * 9, [4] * 3], protect=(5,))
    for method in (encoder.predict, encoder.encode):
        with pytest.raises(ValueError, match=r"protect holds position 6, sequence 3 has 3 tokens"):
            method([*TEXTS[:1], *TEXTS[:1], *TEXTS[:1], "cat"], batch_size=2, protect=(6,))
    with pytest.raises(ValueError, match=r"protect holds position -4, sequence 0 has 3 tokens"):
        encoder.run([[4] * 3], protect=(-4,))
    with pytest.raises(TypeError, match="protect"):
        encoder.run([[4] * 3], protect=(0.5,))
    with pytest.raises(ValueError, match=r"protect\.shape is \(4,\), expected \(3,\)"):
        encoder.run([[4] * 3], protect=np.zeros(4, bool))


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("where", ["query", "value"])
def test_importance_that_is_nan_is_refused(where: str, compute: str, tmp_path: Path) -> None:
    model = make_model("bert")
    with torch.no_grad():
        getattr(model.bert.encoder.layer[0].attention.self, where).weight[3, 3] = torch.nan
    folder = save(model, tmp_path)
    kind = "tokens" if where == "query" else "heads"
    encoder = Encoder.load(folder, compute=compute, **{kind: FALLING["bert"][0]})
    with pytest.raises(ValueError, match="encoder: layer 0: the importance of tokens or heads is"):
        encoder.run([[4, 5, 6, 7, 8]])
    # Nothing is selected: as without schedules, NaN comes out.
    assert np.isnan(Encoder.load(folder, compute=compute).run([[4, 5, 6]]).hidden).any()


# ---- other inputs' numbers, and small ones


@pytest.fixture
def nan_word(tmp_path: Path) -> Path:
    """A model whose word 19 is NaN, and with it every input that has it."""
    model = make_model("bert")
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[19] = torch.nan
    return save(model, tmp_path)


@pytest.mark.usefixtures("cpu_tier")
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("length", [3, 8, 20, 24])
def test_what_an_earlier_run_left_in_memory_counts_nowhere(
    nan_word: Path, compute: str, length: int
) -> None:
    tokens = FALLING["bert"][0]
    ids = random_ids(np.random.default_rng(length), [length])
    ids = [[min(i, 18) for i in row] for row in ids]
    encoder = Encoder.load(nan_word, compute=compute)
    encoder.run([[19] * 40])
    encoder.tokens = tokens
    after = encoder.run(ids)
    fresh = Encoder.load(nan_word, compute=compute, tokens=tokens).run(ids)
    np.testing.assert_array_equal(after.positions, fresh.positions)
    np.testing.assert_array_equal(after.hidden, fresh.hidden)


@pytest.mark.usefixtures("cpu_tier")
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_an_input_that_is_nan_and_loses_nothing_changes_no_other(
    nan_word: Path, compute: str
) -> None:
    tokens = Schedule.by_length(lambda length: 1.0 if length < 4 else 0.5)
    encoder = Encoder.load(nan_word, compute=compute, tokens=tokens)
    good = [min(i, 18) for i in random_ids(np.random.default_rng(0), [20])[0]]
    alone, both = encoder.run([good]), encoder.run([[19, 19], good])
    np.testing.assert_array_equal(both.kept.positions(2, 1), alone.kept.positions(2, 0))
    np.testing.assert_array_equal(both.hidden[_rows(both, 1)], alone.hidden)


@pytest.mark.usefixtures("cpu_tier")
def test_probabilities_below_a_millionth_are_told_apart(tmp_path: Path) -> None:
    """All queries look at a few tokens, and what is left for the others decides among them."""
    model = make_model("bert")
    torch.manual_seed(2)
    heads = model.config.num_attention_heads
    width = model.config.hidden_size // heads
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            own = layer.attention.self
            own.query.weight.zero_()
            own.query.bias.copy_(10 * torch.randn(width).repeat(heads))
            own.key.weight.copy_(own.key.weight[:width].repeat(heads, 1))
    tokens = Schedule.per_layer([1, 0.6, 0.6])
    encoder = Encoder.load(save(model, tmp_path), tokens=tokens)
    row = random_ids(np.random.default_rng(2), [40])[0]
    want = pruned_run(model, row, [0] * 40, tokens.tokens(40, n_layers=3), (heads,) * 3)
    assert want.margin > 1e-4
    run = encoder.run([row])
    for layer in range(3):
        assert run.kept.positions(layer, 0).tolist() == want.tokens[layer]
