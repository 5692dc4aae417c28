"""What a run with token and head pruning cost: what its layers did, counted where they did it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spatile.inference import Encoder
from spatile.sparsity import Schedule

from .conftest import PAIRS, TEXTS, make_model, save

FALLING = Schedule.per_layer([1, 0.6, 0.3])


def random_ids(rng: np.random.Generator, lengths: list[int]) -> list[list[int]]:
    return [rng.integers(4, 20, n).tolist() for n in lengths]


def test_the_cost_is_what_ran(tmp_path: Path) -> None:
    """By hand, from what each layer kept. FFN and W_O are spared what goes behind the layer."""
    model = make_model("bert")
    folder = save(model, tmp_path)
    tokens, heads = FALLING, Schedule.per_layer([1, 0.75, 0.5])
    encoder = Encoder.load(folder, tokens=tokens, heads=heads)
    ids = random_ids(np.random.default_rng(0), [40])
    run = encoder.run(ids)
    width, inner, head = 64, 128, 16
    n, h = (40, 24, 12, 12), (4, 3, 2)
    for i, layer in enumerate(run.cost.layers):
        parts = layer.actual
        kept = run.kept.heads[i, 0].sum()
        assert kept == h[i]
        qkv = 3 * kept * head * width
        assert parts.projections.multiply_adds == n[i] * qkv + n[i + 1] * width * width
        assert parts.scores.multiply_adds == n[i] ** 2 * kept * head
        assert parts.values.multiply_adds == n[i] ** 2 * kept * head
        assert parts.ffn.multiply_adds == n[i + 1] * 2 * width * inner
        assert parts.scores.bytes == 2 * n[i] * kept * head * 4
        assert layer.dense.ffn.multiply_adds == 40 * 2 * width * inner
        assert layer.dense.scores.multiply_adds == 40**2 * width
    assert run.cost.reduction > 1.5
    # What only one of two inputs drops is projected for both.
    two = encoder.run([ids[0], random_ids(np.random.default_rng(7), [23])[0]])
    either = two.kept.heads.any(axis=1).sum(axis=1)
    for i, layer in enumerate(two.cost.layers):
        now, after = two.kept.counts[i].sum(), two.kept.counts[min(i + 1, 2)].sum()
        expected = now * 3 * either[i] * head * width + after * width * width
        assert layer.actual.projections.multiply_adds == expected


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_an_unpruned_model_costs_what_the_dense_one_does(
    family: str, compute: str, first_only: bool, tmp_path: Path
) -> None:
    encoder = Encoder.load(save(make_model(family), tmp_path), compute=compute)
    ids, types = encoder.tokenize(TEXTS, PAIRS)
    cost = encoder.run(ids, types, first_only=first_only).cost
    for layer in cost.layers:
        for part in ("projections", "scores", "values", "ffn"):
            actual, dense = getattr(layer.actual, part), getattr(layer.dense, part)
            assert actual.multiply_adds == dense.multiply_adds
            assert dense.bytes <= actual.bytes <= 1.2 * dense.bytes  # the packed form's index
    if not first_only:
        assert cost.actual.multiply_adds == encoder.multiply_adds(len(i) for i in ids)
        encoder.tokens = Schedule.linear(0.8, whole=0.1)  # left out there, as it says
        assert encoder.run(ids, types).cost.actual.multiply_adds < cost.actual.multiply_adds
        assert cost.actual.multiply_adds == encoder.multiply_adds(len(i) for i in ids)


def test_costs_add_up(tmp_path: Path) -> None:
    encoder = Encoder.load(save(make_model("bert"), tmp_path), tokens=FALLING)
    ids, types = encoder.tokenize(TEXTS, PAIRS)
    parts = [encoder.run([i], [t]).cost for i, t in zip(ids, types, strict=True)]
    together = encoder.run(ids, types).cost
    whole = parts[0] + parts[1] + parts[2] + parts[3]
    assert whole.actual.multiply_adds == together.actual.multiply_adds
    assert whole.dense.multiply_adds == together.dense.multiply_adds
    assert together.actual.bytes < whole.actual.bytes, "weights are read once a run"
    assert encoder.encode(TEXTS, PAIRS, batch_size=1).cost == whole
    assert encoder.predict(TEXTS, PAIRS).cost.reduction > 1.3
    assert f"{together.reduction:.2f}x less" in str(together)
    assert together.to_json()["layers"][0]["actual"]["ffn"]["multiply_adds"] > 0
