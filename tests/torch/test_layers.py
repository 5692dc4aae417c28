"""spatile's linear and dropout layers in the place of PyTorch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import spatile as sp
from spatile.torch import (
    Dropout,
    Linear,
    Plan,
    Pruner,
    SparseLinear,
    densify,
    dropout,
    linear,
    restore_layers,
    sparsify,
    swap_layers,
)


def kinds(model: nn.Module) -> set[type]:
    return {type(m) for m in model.modules() if isinstance(m, (nn.Linear, nn.Dropout))}


def test_swapped_and_restored_in_place(make_bert: Any) -> None:
    model = make_bert()
    parameters = dict(model.named_parameters())
    state = list(model.state_dict())
    names = swap_layers(model)
    assert kinds(model) == {Linear, Dropout}
    assert list(model.state_dict()) == state
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert swap_layers(model) == ()
    assert restore_layers(model) == names
    assert kinds(model) == {nn.Linear, nn.Dropout}


def test_one_kind_alone_and_derived_layers_stay() -> None:
    class Mine(nn.Linear):
        pass

    model = nn.Sequential(Mine(4, 4), nn.Linear(4, 4), nn.Dropout(0.1), nn.Dropout(inplace=True))
    assert swap_layers(model, linear=False) == ("2",)
    assert swap_layers(model, dropout=False) == ("1",)
    assert [type(m) for m in model] == [Mine, Linear, Dropout, nn.Dropout]


def test_same_outputs_and_gradients(make_bert: Any, rows: list[dict[str, Any]]) -> None:
    batch = {
        "input_ids": torch.stack([r["input_ids"] for r in rows]),
        "labels": torch.tensor([r["labels"] for r in rows]),
    }
    results = []
    for swapped in (False, True):
        model = make_bert().eval()
        if swapped:
            swap_layers(model)
        out = model(**batch)
        out.loss.backward()
        results.append((out.logits, {n: p.grad for n, p in model.named_parameters()}))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-4, atol=1e-5)
    for name, grad in results[0][1].items():
        if grad is not None:
            torch.testing.assert_close(results[1][1][name], grad, rtol=1e-3, atol=1e-5, msg=name)


def test_a_sparse_layer_becomes_again_what_it_was(make_bert: Any) -> None:
    model = make_bert()
    swap_layers(model)
    pruner = Pruner(model, Plan.uniform("tile", 0.25), strength=0.0)
    pruner.prune()
    # A threshold is for layers of PyTorch: others have the same way of computing either way.
    assert len(sparsify(model, pruner, min_sparsity=0.5)) == 12
    assert SparseLinear in kinds(model)
    densify(model)
    assert kinds(model) == {Linear, Dropout}


def test_linear_under_autocast_and_without_bias() -> None:
    layer = nn.Linear(48, 32, bias=False)
    x = torch.randn(3, 5, 48, requires_grad=True)
    expected = layer(x)
    model = nn.Sequential(layer)
    swap_layers(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert x.grad is not None
    assert layer.weight.grad.dtype == torch.float32


# ---- dropout ------------------------------------------------------------------------------------


def test_dropout_is_the_op_and_its_gradient_the_same_mask() -> None:
    x = torch.randn(7, 33, requires_grad=True)
    y = dropout(x, p=0.3, seed=5)
    assert torch.equal(y, sp.dropout(x.detach(), p=0.3, seed=5))
    grad = torch.randn(33, 7).t()
    y.backward(grad)
    torch.testing.assert_close(x.grad, grad * sp.dropout(torch.ones(7, 33), p=0.3, seed=5))


def test_dropout_draws_from_the_default_generator() -> None:
    layer = Dropout(0.5)
    x = torch.ones(1000)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(second, first)
    assert 400 < int((first == 0).sum()) < 600
    assert set(first.tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_draws_the_same_elements(reentrant: bool) -> None:
    layer = Dropout(0.5)
    x = torch.ones(500, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=reentrant)
    y.sum().backward()
    assert torch.equal(x.grad, y)


def test_dropout_does_nothing_in_evaluation_and_at_the_ends_of_its_range() -> None:
    x = torch.randn(50)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert (Dropout(1.0)(x) == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dropout_in_half_precision(dtype: torch.dtype) -> None:
    x = torch.ones(200, dtype=dtype, requires_grad=True)
    y = dropout(x, p=0.5, seed=0)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert torch.equal(x.grad, y)
    assert torch.equal(y.float(), sp.dropout(torch.ones(200), p=0.5, seed=0))


def test_what_the_layers_refuse() -> None:
    with pytest.raises(TypeError, match=r"dropout: x\.dtype is float64"):
        Dropout(0.5)(torch.ones(3, dtype=torch.float64))
    with pytest.raises(NotImplementedError, match="linear: x is on meta, expected the CPU"):
        linear(torch.ones(2, 4, device="meta"), torch.ones(4, 4))
