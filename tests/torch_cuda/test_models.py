"""Layers, sparse layers and the attention back-end in models on a GPU."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import spatile as sp
from spatile.torch import (
    Plan,
    Pruner,
    SparseLinear,
    densify,
    sparsify,
    swap_layers,
)

from ..torch.test_sparse_linear import Block, expanded, grads, pruned
from .conftest import Autocast, on


def gradients(model: Any, batch: Any) -> dict[str, torch.Tensor]:
    """The logits, and the gradients of all parameters, on the CPU."""
    out = model(**batch)
    out.loss.backward()
    found = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
    return {"logits": out.logits.detach().cpu(), **found}


def test_a_whole_model_forward_and_backward(cuda: str, make_bert: Any, batches: Any) -> None:
    expected = gradients(make_bert("eager"), batches[0])
    model = make_bert("spatile").to(cuda)
    swap_layers(model)
    found = gradients(model, on(cuda, batches[0]))
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("pattern", ["tile", "tile:8x8", "row", "column", "head:8"])
@pytest.mark.parametrize("shape", [(48, 64), (40, 24)], ids=str)
def test_sparse_layers_are_the_masked_ones(cuda: str, pattern: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = Block(*shape)
    oracle = nn.Linear(shape[1], shape[0]).double()
    x, cotangent = torch.randn(3, 7, shape[1]), torch.randn(3, 7, shape[0])
    model.to(cuda)
    pruner = pruned(model, pattern)
    oracle.load_state_dict({n: p.cpu().double() for n, p in model.dense.state_dict().items()})
    keep = expanded(pruner)
    assert keep.device.type == "cuda"
    expected = grads(oracle, x.double(), cotangent.double())
    expected[2] = expected[2] * keep.cpu()
    assert sparsify(model, pruner) == ("encoder.layer.0.output.dense",)
    with torch.no_grad():
        model.dense.weight.add_(5.0 * ~keep)  # counts nowhere
    found = grads(model.dense, x.to(cuda), cotangent.to(cuda))
    for mine, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.cpu().double(), wanted, rtol=2e-5, atol=2e-5)
    assert (found[2][~keep] == 0).all()


def test_a_sparse_model_that_moves(cuda: str) -> None:
    """Down and up again, with stored columns of which a part is pruned."""
    model = Block(40, 64)
    pruner = pruned(model, "tile:8x8")
    sparsify(model, pruner)
    x = torch.randn(5, 64)
    before = model.dense(x).detach()
    model.to(cuda)
    there = model.dense(x.to(cuda)).detach()
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu(), before, rtol=1e-5, atol=1e-5)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other.dense(x.to(cuda)).detach().cpu(), there.cpu())
    model.to("cpu")
    assert torch.equal(model.dense(x).detach(), before)
    with pytest.raises(ValueError, match="linear: x is on cuda:0 and w on the CPU, expected one"):
        model.dense(x.to(cuda))


def test_float16_inputs_of_a_layer_with_float32_weights(cuda: str) -> None:
    """As under float16 autocast."""
    model = Block(32, 48).to(cuda)
    sparsify(model, pruned(model))
    weight = model.dense.weight.detach().cpu()
    x = torch.randn(5, 48)
    out = model.dense(x.to(cuda).half())
    out.float().square().sum().backward()
    assert out.dtype == torch.float16
    assert {p.grad.dtype for p in model.dense.parameters()} == {torch.float32}
    wanted = x.half().float() @ weight.half().float().t() + model.dense.bias.detach().cpu()
    torch.testing.assert_close(out.detach().cpu().float(), wanted, rtol=3e-3, atol=3e-3)
    dw = 2 * wanted.t() @ x.half().float() * (weight != 0)
    torch.testing.assert_close(model.dense.weight.grad.cpu(), dw, rtol=1e-2, atol=2e-2)


def test_a_loop_under_bfloat16_autocast(
    cuda: str, autocast: Autocast, make_bert: Any, batches: Any
) -> None:
    """Fused attention, our layers, half of it pruned and sparse; against PyTorch's in float32."""
    losses = []
    for device in ("cpu", cuda):
        model = make_bert("spatile" if device == cuda else "eager").to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        plan = Plan.uniform("tile", 0.5)
        pruner = Pruner(model, plan, strength=1.0, optimizer=optimizer)
        if device == cuda:
            swap_layers(model)
        seen = []
        for step in range(8):
            if step == 4:
                pruner.prune()
                if device == cuda:
                    assert len(sparsify(model, pruner)) == 12
            batch = on(device, batches[step % 4])
            if device == cuda:
                with autocast(device):
                    loss = model(**batch).loss
            else:
                loss = model(**batch).loss
            loss.backward()
            assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            pruner.before_step()
            optimizer.step()
            pruner.after_step()
            optimizer.zero_grad()
            seen.append(float(loss.detach()))
        losses.append(seen)
        norms = pruner.norms()
        for name, mask in pruner.masks.items():
            assert mask.device.type == device
            assert (norms[name][~mask] == 0).all()
    assert losses[1] == pytest.approx(losses[0], rel=3e-2)
    assert len(densify(model)) == 12
    assert not any(isinstance(m, SparseLinear) for m in model.modules())


def test_ops_on_the_models_tensors_stay_there(cuda: str, make_bert: Any) -> None:
    weight = make_bert().to(cuda).bert.encoder.layer[0].output.dense.weight.detach()
    norms = sp.group_norms(weight, pattern="tile")
    assert norms.device.type == "cuda"
    expected = sp.group_norms(weight.cpu(), pattern="tile")
    torch.testing.assert_close(norms.cpu(), expected, rtol=1e-6, atol=0)
