"""Gradients under token and head pruning, and what else it works together with."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from spatile.sparsity import Plan
from spatile.torch import (
    HeadPruning,
    Pruner,
    TokenPruning,
    choose_structure,
    sparsify,
    swap_layers,
)
from spatile.torch.calibration import LayerWalk
from spatile.torch.cascade_attention import attend
from spatile.torch.structure_pruning import layers_left

from .pruned_models import (
    HEADS,
    TOKENS,
    assert_as_the_engine,
    make_ids,
    make_model,
    padded,
    pruned,
)

# ---- gradients


def masked_twin(model: Any, batch: dict[str, torch.Tensor], kept: Any) -> torch.Tensor:
    """The logits of a BERT that only masks: full-length, in plain operations, choices given."""
    bert, n = model.bert, len(batch["input_ids"])
    x = bert.embeddings(batch["input_ids"])
    for i, layer in enumerate(bert.encoder.layer):
        own = layer.attention.self
        stays = torch.zeros(x.shape[:2], dtype=torch.bool)
        for j in range(n):
            stays[j, kept.positions(i, j)] = True
        q, k, v = (f(x).view(n, -1, 4, 16).transpose(1, 2) for f in (own.query, own.key, own.value))
        scores = (q @ k.transpose(2, 3) / 4).masked_fill(~stays[:, None, None], -torch.inf)
        heads = torch.from_numpy(kept.heads[i])[:, :, None, None]
        context = (scores.softmax(-1) @ v * heads).transpose(1, 2).flatten(2)
        y = layer.attention.output(context, x)
        x = layer.output(layer.intermediate(y), y)
    return model.classifier(bert.pooler(x))  # type: ignore[no-any-return]


def test_gradients_are_those_of_a_masked_float64_model() -> None:
    """The selection held fixed, of every parameter."""
    model = make_model("bert")
    batch = padded(make_ids())
    pruning = pruned(model)
    weight = torch.randn(5, 2)
    (model(**batch).logits * weight).sum().backward()
    twin = make_model("bert").double()
    logits = masked_twin(twin, batch, pruning.kept)
    (logits * weight).sum().backward()
    for (name, found), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        scale = float(expected.grad.abs().max())
        assert float((found.grad - expected.grad).abs().max()) <= 1e-4 * max(scale, 1e-2), name


def test_gradients_by_finite_differences() -> None:
    """In float64 the plain operations compute; no choice is near enough to a tie to change."""
    model = make_model("roberta").double()
    batch = padded(make_ids([9, 5]))
    pruned(model)
    bias = model.roberta.encoder.layer[1].attention.self.value.bias

    def logits(value: torch.Tensor) -> torch.Tensor:
        name = "roberta.encoder.layer.1.attention.self.value.bias"
        return torch.func.functional_call(model, {name: value}, (), batch).logits

    assert torch.autograd.gradcheck(logits, bias.detach().clone().requires_grad_(), fast_mode=True)


def test_plain_operations_and_the_kernel_agree() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 11, 4, 8)
    value, output = torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)
    lengths, kept = torch.tensor([11, 6]), torch.tensor([[True] * 4, [True, False, True, False]])
    found, expected = (
        attend(
            *(t.to(dtype) for t in (q, k, v)), value=value.to(dtype), output=output.to(dtype),
            lengths=lengths, kept=kept, dropout=0.0, importance=True,
        )
        for dtype in (torch.float32, torch.float64)
    )  # fmt: skip
    for mine, theirs in zip(vars(found).values(), vars(expected).values(), strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), atol=1e-4, rtol=1e-5)
    assert expected.tokens is not None
    assert expected.tokens.sum(dim=1).tolist() == pytest.approx([44, 12])


# ---- a plain loop, and what it works together with


def test_a_plain_loop_learns_and_reaches_the_ratio() -> None:
    model = make_model("bert").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(0)
    ids = torch.randint(4, 50, (16, 20))
    labels = (ids[:, 1] > 26).long()
    pruning, heads = TokenPruning(TOKENS).attach(model), HeadPruning(HEADS).attach(model)
    losses, counts = [], []
    for step in range(30):
        pruning.progress = heads.progress = min(1.0, step / 10)
        loss = model(ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
        counts.append(int(pruning.kept.counts[2, 0]))
    assert counts[:11] == [20, 19, 17, 16, 14, 13, 12, 10, 9, 7, 6]
    assert counts[10:] == [6] * 20
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_autocast_and_spatiles_layers(tmp_path: Path) -> None:
    model = make_model("bert")
    swap_layers(model)
    assert_as_the_engine(model, tmp_path)
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**padded(make_ids()), labels=torch.zeros(5, dtype=torch.long)).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_layers_that_compute_kept_tiles_only(tmp_path: Path) -> None:
    model = make_model("bert")
    plan = Plan.uniform("tile", 0.6)
    pruner = Pruner(model, plan, strength=0.0)
    pruner.prune()
    sparsify(model, pruner)
    assert_as_the_engine(model, tmp_path, plan=plan)


def test_calibration_sees_all_tokens() -> None:
    model = make_model("bert")
    batch = padded(make_ids())

    def grams() -> dict[str, torch.Tensor]:
        names = []
        with LayerWalk(model, [batch]) as walk:
            for prefix in walk.layers:
                names.append(walk.grams([f"{prefix}.output.dense"], advance=True))
        return {name: gram for part in names for name, gram in part.items()}

    expected = grams()
    pruning = pruned(model)
    for name, gram in grams().items():
        assert torch.equal(gram, expected[name]), name
    model(**batch)
    assert pruning.kept.counts[2, 2] == 12, "the walk has left it paused"


def test_choosing_structure_looks_at_all_tokens() -> None:
    """Also where layers are left out by way of trial, which no schedule would fit."""
    model = make_model("bert")
    plan = Plan.uniform("tile", 0.0).with_structure(heads=0.25, layers=0.34)
    batches = [padded(make_ids())]
    expected = choose_structure(model, plan, batches)
    pruning = TokenPruning(TOKENS).attach(model)
    assert choose_structure(model, plan, batches) == expected
    assert len(expected.layers) == 2 == layers_left(model, plan)
    model(**batches[0])
    assert pruning.kept.counts[2, 2] == 12


def test_a_copy_is_pruned_on_its_own() -> None:
    model = make_model("bert")
    pruning = pruned(model)
    twin = copy.deepcopy(model)
    pruning.detach()
    batch = padded(make_ids())
    assert not torch.equal(model(**batch).logits, twin(**batch).logits)
