"""The Pruner on a GPU: the same as on the CPU, and where its tensors are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spatile.sparsity import Schedule
from spatile.torch import HeadPruning, Plan, Pruner, TokenPruning, apply_structure, prune_structure
from spatile.torch.checkpoint import weights_checksum
from spatile.torch.distillation import hidden_loss

from .conftest import on

PLAN = Plan.uniform("tile", 0.5)


def train(model: Any, pruner: Pruner, batches: Any, device: str, steps: int = 3) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(steps):
        model(**on(device, batches[step % len(batches)])).loss.backward()
        pruner.before_step()
        optimizer.step()
        pruner.after_step(lr=0.05)
        optimizer.zero_grad()


def assert_alike(mine: Any, theirs: Any, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Tensors by name, those of a GPU and those of the CPU."""
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert tensor.device.type == "cuda", name
        torch.testing.assert_close(tensor.cpu(), theirs[name], rtol=rtol, atol=atol, msg=name)


@pytest.mark.parametrize(
    ("saliency", "scope", "method"),
    [
        ("magnitude", "global", "proximal"),
        ("magnitude", "row-balanced", "gradient"),
        ("movement", "global", "proximal"),
        ("taylor", "matrix", "proximal"),
    ],
)
def test_training_and_pruning_are_the_cpus(
    cuda: str, make_bert: Any, batches: Any, saliency: Any, scope: Any, method: Any
) -> None:
    found = []
    for device in (cuda, "cpu"):
        model = make_bert().to(device).eval()
        pruner = Pruner(model, PLAN, strength=0.5, method=method, saliency=saliency, scope=scope)
        pruner.reweight()
        assert pruner.strength_for(0.5, 1.0) > 0
        train(model, pruner, batches, device)
        penalty = pruner.penalty()
        norms, beta = pruner.norms(), pruner.beta
        masks = pruner.prune()
        train(model, pruner, batches, device)
        found.append((norms, beta, masks, dict(model.named_parameters()), penalty))
    for mine, theirs in zip(found[0][:4], found[1][:4], strict=True):
        assert_alike(mine, theirs)
    assert found[0][4] == pytest.approx(found[1][4], rel=1e-4)
    share = sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
    assert 0.4 < share < 0.6


@pytest.mark.parametrize("saliency", ["second-order", "reconstruction"])
def test_second_order_computes_grams_there_and_comes_back(
    cuda: str, make_bert: Any, batches: Any, saliency: Any
) -> None:
    texts = [{k: t for k, t in b.items() if k != "labels"} for b in batches]
    found = []
    for device in (cuda, "cpu"):
        model = make_bert().to(device)
        pruner = Pruner(model, PLAN, strength=0.0, saliency=saliency, calibration=texts)
        # Before processes agree on them: NCCL takes a GPU's tensors alone.
        assert {mask.device.type for mask in pruner.choose_masks().values()} == {device}
        masks = pruner.prune()
        found.append((masks, dict(model.named_parameters()), pruner.relative_errors))
    assert_alike(found[0][0], found[1][0])
    assert_alike(found[0][1], found[1][1], rtol=1e-3, atol=1e-4)
    assert found[0][2] == pytest.approx(found[1][2], rel=1e-3)
    assert max(found[0][2].values()) > 0


def test_heads_neurons_and_layers_go(cuda: str, make_bert: Any, batches: Any) -> None:
    texts = [{k: t for k, t in b.items() if k != "labels"} for b in batches]
    plan = PLAN.with_structure(heads=0.5, neurons=0.25, layers=0.5)
    found = []
    for device in (cuda, "cpu"):
        model = make_bert(num_hidden_layers=2).to(device).eval()
        structure = prune_structure(model, plan, texts)
        assert {p.device.type for p in model.parameters()} == {device}
        with torch.no_grad():
            logits = model(**on(device, batches[0])).logits.cpu()
        found.append((structure, logits))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-4)
    assert len(structure.layers[0].heads) == 1
    assert apply_structure(model) == structure


def test_state_goes_with_the_model(cuda: str, make_bert: Any, batches: Any) -> None:
    """To a GPU while training, and through a checkpoint of the one to the other."""
    model = make_bert()
    pruner = Pruner(model, PLAN, strength=0.5, saliency="movement")
    train(model, pruner, batches, "cpu", steps=1)
    model.to(cuda)
    train(model, pruner, batches, cuda, steps=1)
    masks = pruner.prune()
    assert {t.device.type for t in (*masks.values(), *pruner.beta.values())} == {"cuda"}
    state = pruner.state_dict()

    other = make_bert(seed=1)
    other.load_state_dict({name: t.cpu() for name, t in model.state_dict().items()})
    again = Pruner(other, PLAN, strength=0.0, saliency="movement")
    again.load_state_dict(state)
    assert {t.device.type for t in (*again.masks.values(), *again.beta.values())} == {"cpu"}
    assert weights_checksum(again) == weights_checksum(pruner)
    pruner.load_state_dict(again.state_dict())
    assert_alike(pruner.masks, again.masks)


def test_bfloat16_parameters_sum_their_shrinkage(cuda: str, make_bert: Any) -> None:
    fell = []
    for device in (cuda, "cpu"):
        model = make_bert().to(device, torch.bfloat16)
        pruner = Pruner(model, PLAN, strength=4.0)
        pruner.reweight()
        before = torch.cat([n.flatten().cpu() for n in pruner.norms().values()])
        for _ in range(10):
            pruner.after_step(lr=8e-3)
        after = torch.cat([n.flatten().cpu() for n in pruner.norms().values()])
        fell.append(float((after / before).median()))
    assert fell[0] == pytest.approx(fell[1], rel=1e-3)
    assert fell[0] < 0.95


def test_tokens_and_heads_go(
    cuda: str, make_bert: Any, batches: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fused kernel says how important they are; the host decides."""
    monkeypatch.delattr("spatile.torch.cascade_attention._plain")
    found = []
    for device in (cuda, "cpu"):
        model = make_bert(num_hidden_layers=3, num_attention_heads=4).to(device).eval()
        with (
            TokenPruning(Schedule.per_layer([1, 0.6, 0.3])).attach(model) as tokens,
            HeadPruning(Schedule.per_layer([1, 0.75, 0.5])).attach(model) as heads,
        ):
            out = model(**on(device, batches[0]), output_hidden_states=True)
            assert {mask.device.type for mask in tokens.masks} == {device}
            loss = hidden_loss(
                out.hidden_states[1:],
                [torch.zeros_like(x) + 1 for x in out.hidden_states[1:]],
                attention_mask=tokens.masks,
            )
            (out.loss + loss).backward()
            gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            found.append((tokens.kept, heads.kept, gradients, float(loss.detach())))
    assert found[0][0].counts.tolist() == found[1][0].counts.tolist()
    assert found[0][0].counts[2].min() < found[0][0].counts[0].min()
    assert found[0][1].heads.tolist() == found[1][1].heads.tolist()
    assert not found[0][1].heads.all()
    assert_alike(found[0][2], found[1][2], rtol=1e-3)
    assert found[0][3] == pytest.approx(found[1][3], rel=1e-4)
