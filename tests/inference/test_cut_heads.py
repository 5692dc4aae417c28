"""Cascade head pruning of models whose layers have different heads, or heads without values."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from spatile.inference import Encoder
from spatile.sparsity import LayerStructure, Plan, Schedule
from spatile.torch import Pruner, apply_structure, structure_of

from .conftest import PAIRS, TEXTS, make_model, save
from .pruned_run import heads_left, pruned_run
from .test_structure import random_structure

LOW = Schedule.per_layer([1, 0.5, 0.25])
UNEVEN = {
    "one each, different": ((0, 1, 2, 3), (0,), (3,)),
    "some that the first lacks": ((0, 1), (2, 3), (0, 1, 2, 3)),
    "more and more": ((2,), (1, 2), (0, 1, 2)),
    "some that none has later": ((0, 1, 2, 3), (1, 2), (1,)),
}


def cut_model(heads: tuple[tuple[int, ...], ...]) -> PreTrainedModel:
    model = make_model("bert")
    layers = [LayerStructure(i, own, tuple(range(0, 128, 2))) for i, own in enumerate(heads)]
    apply_structure(model, structure_of(model).with_layers(layers))
    return model


def kept_heads(run: Any, i: int) -> list[list[int]]:
    return [np.nonzero(row)[0].tolist() for row in run.kept.heads[:, i]]


# ---- the rule


def test_the_least_important_of_the_next_layers_heads_go() -> None:
    scores, every = [4.0, 1.0, 3.0, 2.0], {0, 1, 2, 3}
    assert heads_left(every, [every, every], scores, 2) == {0, 2}
    assert heads_left(every, [every], [1.0, 1.0, 1.0, 1.0], 2) == {0, 1}
    # Of two that the next layer has both stay; what it lacks is not its concern.
    assert heads_left(every, [{1, 3}, every], scores, 2) == every
    assert heads_left(every, [{0, 1, 3}, every], scores, 2) == {0, 2, 3}
    assert heads_left({0, 2}, [{0, 1, 3}, every], scores, 2) == {0, 2}


def test_a_layers_last_head_stays() -> None:
    scores, every = [4.0, 1.0, 3.0, 2.0], {0, 1, 2, 3}
    assert heads_left(every, [every, {1}], scores, 2) == {0, 1}
    assert heads_left(every, [every, {1, 3}], scores, 2) == {0, 3}
    # More than the schedule says where each is somebody's last.
    assert heads_left(every, [every, {1}, {3}], scores, 1) == {1, 3}


# ---- the engine


@pytest.mark.usefixtures("cpu_tier")
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("heads", UNEVEN.values(), ids=UNEVEN)
def test_the_engine_keeps_what_the_definition_says(
    heads: tuple[tuple[int, ...], ...], compute: str, tmp_path: Path
) -> None:
    model = cut_model(heads)
    encoder = Encoder.load(save(model, tmp_path), compute=compute, tokens=LOW, heads=LOW)
    ids, types = encoder.tokenize(TEXTS, PAIRS)
    run = encoder.run(ids, types)
    for i, row in enumerate(ids):
        counts = LOW.tokens(len(row), n_layers=3), LOW.heads(4, n_layers=3, length=len(row))
        want = pruned_run(model, row, types[i], *counts)
        assert all(want.heads)
        if want.margin < (1e-4 if compute == "float32" else 0.05):
            continue
        assert kept_heads(run, i) == want.heads
        if compute == "float32":
            got = run.hidden[run.offsets[i] : run.offsets[i + 1]]
            np.testing.assert_allclose(got, want.hidden.numpy(), atol=1e-4, rtol=0)


def test_a_head_that_is_a_later_layers_only_one_is_not_dropped(tmp_path: Path) -> None:
    """Layer 2 has head 3 alone, whatever layer 0 says of it."""
    for weakest in range(4):
        model = cut_model(((0, 1, 2, 3), (0, 1, 2, 3), (weakest,)))
        with torch.no_grad():
            value = model.bert.encoder.layer[0].attention.self.value
            for part in (value.weight, value.bias):
                part[weakest * 16 : (weakest + 1) * 16] *= 1e-3
        encoder = Encoder.load(
            save(model, tmp_path / str(weakest)), heads=Schedule.per_layer([1, 0.5, 0.25])
        )
        run = encoder.run(*encoder.tokenize(TEXTS, PAIRS))
        for i in range(len(TEXTS)):
            _, second, third = kept_heads(run, i)
            assert weakest in second
            assert len(second) == 2
            assert third == [weakest]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    keep=st.lists(st.floats(0.01, 1.0), min_size=2, max_size=2),
    compute=st.sampled_from(["float32", "bfloat16"]),
    tiles=st.booleans(),
)
def test_every_layer_has_a_head_and_no_head_comes_back(
    seed: int, keep: list[float], compute: str, tiles: bool
) -> None:
    model = make_model("bert")
    structure = random_structure(model, seed)
    apply_structure(model, structure)
    plan = Plan.uniform("head:16", 0.6, targets=[r"re:\.value$"]) if tiles else None
    if plan is not None:
        Pruner(model, plan, strength=0.0).prune()
    n_layers = len(structure.layers)
    falling = Schedule.per_layer([1.0, *sorted(keep, reverse=True)][:n_layers])
    with tempfile.TemporaryDirectory() as folder:
        path = save(model, Path(folder))
        whole = Encoder.load(path, plan=plan, compute=compute)
        encoder = Encoder.load(path, plan=plan, compute=compute, heads=falling)
    ids, types = encoder.tokenize(TEXTS, PAIRS)
    run = encoder.run(ids, types)
    has = whole.run(ids, types).kept.heads[:, 0]
    for left, row in zip(structure.layers, has, strict=True):
        assert set(np.nonzero(row)[0]) <= set(left.heads)
    for i, row in enumerate(ids):
        kept, gone = run.kept.heads[:, i], np.zeros(4, bool)
        most = falling.heads(4, n_layers=n_layers, length=len(row))
        for layer in range(n_layers):
            assert not (kept[layer] & (gone | ~has[layer])).any()
            gone |= has[layer] & ~kept[layer]
            n_left = int((has[layer] & ~gone).sum())
            assert n_left == kept[layer].sum() >= min(1, has[layer].sum())
            # Beyond what the schedule says each is the last that some later layer has left.
            assert n_left <= max(most[layer], n_layers - 1 - layer)
        alone = encoder.run([row], [types[i]])
        np.testing.assert_array_equal(alone.kept.heads[:, 0], kept)
    assert len(run.cost.layers) == 3
    for cost in run.cost.layers:
        assert cost.dense.scores.multiply_adds > 0
        there = [left.layer for left in structure.layers]
        expected = has[there.index(cost.layer)].any() if cost.layer in there else False
        assert (cost.actual.scores.multiply_adds > 0) == expected


def test_the_cost_is_that_of_the_heads_that_ran(tmp_path: Path) -> None:
    heads = UNEVEN["one each, different"]
    encoder = Encoder.load(save(cut_model(heads), tmp_path), heads=LOW)
    run = encoder.run([list(range(4, 20))])
    for layer, kept in zip(run.cost.layers, run.kept.heads[:, 0], strict=True):
        assert layer.actual.scores.multiply_adds == 16 * 16 * 16 * kept.sum()
    assert run.kept.heads[:, 0].sum(axis=1).tolist() == [4, 1, 1]


def test_without_schedules_each_layer_works_on_what_it_has(tmp_path: Path) -> None:
    heads = UNEVEN["some that the first lacks"]
    path = save(cut_model(heads), tmp_path)
    every = Schedule.per_layer([1, 1, 1])
    for options in ({}, {"heads": every}, {"heads": every, "tokens": LOW}):
        run = Encoder.load(path, **options).run([[4, 5, 6, 7], [8, 9]])
        for i in range(2):
            assert kept_heads(run, i) == [list(own) for own in heads]
