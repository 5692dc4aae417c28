"""Head pruning on PyTorch models that lost heads and layers for good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spatile.inference import Encoder
from spatile.sparsity import LayerStructure, Plan, Schedule
from spatile.torch import (
    HeadPruning,
    Pruner,
    apply_structure,
    structure_of,
)

from .pruned_models import (
    FAMILIES,
    LENGTHS,
    TOKENS,
    assert_as_the_engine,
    assert_same_kept,
    make_ids,
    make_model,
    padded,
    pruned,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_models_that_lost_heads_and_layers(family: str, tmp_path: Path) -> None:
    """Heads keep their numbers, also those that a layer no longer has."""
    model = make_model(family)
    whole = structure_of(model)
    neurons = whole.layers[0].neurons[::2]
    apply_structure(
        model,
        whole.with_layers(
            [LayerStructure(0, (0, 2, 3), neurons), LayerStructure(2, (1, 3), neurons)]
        ),
    )
    two = Schedule.per_layer([1, 0.5])
    model.save_pretrained(tmp_path)
    encoder = Encoder.load(tmp_path, tokens=two, heads=two)
    run = encoder.run(make_ids())
    pruning = pruned(model, two, two)
    with torch.no_grad():
        model(**padded(make_ids()))
    assert_same_kept(pruning.kept, run.kept)


def test_structure_that_goes_while_pruning_is_attached() -> None:
    model = make_model("bert")
    pruning = pruned(model, Schedule.linear(0.75), Schedule.linear(0.75))
    model(**padded(make_ids()))
    whole = structure_of(model)
    rest = [LayerStructure(i, (1, 2), whole.layers[0].neurons[:32]) for i in (0, 2)]
    apply_structure(model, whole.with_layers(rest))
    with torch.no_grad():
        found = model(**padded(make_ids())).logits
    assert len(pruning.kept.counts) == 2
    other = make_model("bert")
    apply_structure(other, whole.with_layers(rest))
    pruned(other, Schedule.linear(0.75), Schedule.linear(0.75))
    with torch.no_grad():
        assert torch.equal(other(**padded(make_ids())).logits, found)


UNEVEN = {
    "one each, different": ((0, 1, 2, 3), (0,), (3,)),
    "some that the first lacks": ((0, 1), (2, 3), (0, 1, 2, 3)),
    "more and more": ((2,), (1, 2), (0, 1, 2)),
    "some that none has later": ((0, 1, 2, 3), (1, 2), (1,)),
}


def cut_model(family: str, heads: tuple[tuple[int, ...], ...], seed: int = 0) -> Any:
    model = make_model(family, seed)
    whole = structure_of(model)
    neurons = whole.layers[0].neurons[::2]
    layers = [LayerStructure(i, own, neurons) for i, own in enumerate(heads)]
    apply_structure(model, whole.with_layers(layers))
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("heads", UNEVEN.values(), ids=UNEVEN)
def test_layers_of_different_heads_keep_what_the_engine_keeps(
    heads: tuple[tuple[int, ...], ...], family: str, tmp_path: Path
) -> None:
    low = Schedule.per_layer([1, 0.5, 0.25])
    kept = assert_as_the_engine(cut_model(family, heads), tmp_path, schedules=(low, low))
    for layer, own in enumerate(heads):
        assert kept.heads[layer].any(axis=1).all(), "a layer without heads"
        assert not kept.heads[layer][:, [h for h in range(4) if h not in own]].any()


@pytest.mark.parametrize("seed", range(6))
def test_any_structure_any_keep(seed: int, tmp_path: Path) -> None:
    """Also heads whose values are all zero, which the packed model does not have."""
    rng = np.random.default_rng(seed)
    heads = tuple(
        tuple(sorted(rng.choice(4, rng.integers(1, 5), replace=False).tolist())) for _ in range(3)
    )
    model = cut_model("bert", heads, seed)
    plan = Plan.uniform("head:16", 0.6, targets=[r"re:\.value$"]) if seed % 2 else None
    if plan is not None:
        Pruner(model, plan, strength=0.0).prune()
    falling = sorted(rng.uniform(0.05, 1.0, 2).tolist(), reverse=True)
    schedule = Schedule.per_layer([1.0, *falling])
    assert_as_the_engine(model, tmp_path, plan=plan, schedules=(TOKENS, schedule))


def test_a_batch_of_a_cut_model_is_one_input_after_another() -> None:
    low = Schedule.by_length(lambda n: 0.5 if n > 20 else 0.9)
    model = cut_model("bert", UNEVEN["some that the first lacks"])
    pruning = HeadPruning(low).attach(model)
    ids = make_ids()
    with torch.no_grad():
        together = model(**padded(ids)).logits
        heads = pruning.kept.heads
        for i, row in enumerate(ids):
            alone = model(**padded([row])).logits[0]
            np.testing.assert_array_equal(pruning.kept.heads[:, 0], heads[:, i])
            torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=0)


def test_what_a_layer_lacks_costs_no_place_in_it() -> None:
    """Half of four heads are two, and it has two: both stay."""
    model = cut_model("bert", ((0, 1, 2, 3), (1, 3), (1, 3)))
    pruning = HeadPruning(Schedule.per_layer([1, 0.5, 0.5])).attach(model)
    model(**padded(make_ids()))
    assert pruning.kept.heads[1:].sum(axis=2).tolist() == [[2] * len(LENGTHS)] * 2
    pruning.detach()
    gradual = HeadPruning(Schedule.per_layer([1, 0.25, 0.25])).attach(model)
    gradual.progress = 0.5  # 0.625 of four heads are three
    model(**padded(make_ids()))
    assert gradual.kept.heads[1:].sum(axis=2).tolist() == [[2] * len(LENGTHS)] * 2
    gradual.progress = 1.0
    model(**padded(make_ids()))
    assert gradual.kept.heads[1:].sum(axis=2).tolist() == [[1] * len(LENGTHS)] * 2
