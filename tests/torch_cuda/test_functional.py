"""linear, dropout and attention on CUDA tensors, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import spatile as sp
from spatile.torch import attention, dropout, linear

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def leaf(x: torch.Tensor, device: str, dtype: torch.dtype) -> torch.Tensor:
    return x.to(device, dtype).detach().requires_grad_()


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_linear(cuda: str, dtype: torch.dtype) -> None:
    parts = randn(3, 5, 48), randn(24, 48, seed=1), randn(24, seed=2)
    there = [leaf(t, cuda, dtype) for t in parts]
    exact = [leaf(t.to(dtype), "cpu", torch.float64) for t in parts]
    cotangent = randn(24, 5, 3, seed=3).to(dtype)
    out = linear(there[0], there[1], bias=there[2])
    assert (out.device.type, out.dtype, out.shape) == ("cuda", dtype, (3, 5, 24))
    out.backward(cotangent.to(cuda).permute(2, 1, 0))
    expected = torch.nn.functional.linear(*exact)
    expected.backward(cotangent.double().permute(2, 1, 0))
    tolerance = TOLERANCE[dtype]
    found = [out.detach(), *(t.grad for t in there)]
    for mine, wanted in zip(found, [expected.detach(), *(t.grad for t in exact)], strict=True):
        assert mine.device.type == "cuda"
        torch.testing.assert_close(
            mine.cpu().double(), wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max())
        )


def test_linear_of_bfloat16_inputs_and_float32_weights(cuda: str) -> None:
    x = leaf(randn(6, 32), cuda, torch.bfloat16)
    w = leaf(randn(16, 32, seed=1), cuda, torch.float32)
    out = linear(x, w)
    out.sum().backward()
    assert (out.dtype, w.grad.dtype) == (torch.bfloat16, torch.float32)
    rounded = w.detach().cpu().bfloat16().float()
    wanted = x.detach().cpu().float() @ rounded.t()
    torch.testing.assert_close(out.detach().cpu(), wanted.bfloat16(), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(
        w.grad.cpu(), x.detach().cpu().float().sum(0).expand(16, 32), rtol=1e-5, atol=1e-5
    )


def test_dropout_draws_the_same_as_on_the_cpu(cuda: str) -> None:
    x = leaf(randn(7, 33), cuda, torch.float32)
    y = dropout(x, p=0.3, seed=5)
    assert y.device.type == "cuda"
    assert torch.equal(y.detach().cpu(), sp.dropout(randn(7, 33), p=0.3, seed=5))
    y.sum().backward()
    assert torch.equal(x.grad.cpu(), sp.dropout(torch.ones(7, 33), p=0.3, seed=5))
    torch.manual_seed(3)
    first, second = dropout(x, p=0.5), dropout(x, p=0.5)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, p=0.5), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("how", ["mask", "bias", "causal"])
def test_attention(cuda: str, dtype: torch.dtype, how: str) -> None:
    parts = [randn(2, 9, 2, 16, seed=i) for i in range(3)]
    mask = (randn(2, 1, 1, 9, seed=4) > -0.5).index_fill(3, torch.tensor([0]), True)
    bias = randn(1, 2, 9, 9, seed=5)
    results = []
    for device, kind in ((cuda, dtype), ("cpu", torch.float32)):
        inputs = [leaf(t.to(dtype), device, kind) for t in parts]
        added = leaf(bias.to(dtype), device, kind)
        if device == cuda:
            given: dict[str, Any] = {
                "mask": {"mask": mask.to(cuda)}, "bias": {"bias": added}, "causal": {"causal": True}
            }[how]  # fmt: skip
            out = attention(*inputs, **given)
            assert (out.device.type, out.dtype) == ("cuda", dtype)
        else:
            out = torch.nn.functional.scaled_dot_product_attention(
                *(t.transpose(1, 2) for t in inputs),
                attn_mask={"mask": mask, "bias": added, "causal": None}[how],
                is_causal=how == "causal",
            ).transpose(1, 2)
        (out.float() ** 2).sum().backward()
        grads = [t.grad for t in (*inputs, added) if t.grad is not None]
        results.append([out.detach().cpu().float(), *(g.cpu().float() for g in grads)])
    assert len(results[0]) == (5 if how == "bias" else 4)
    for mine, wanted in zip(*results, strict=True):
        near = 2 * TOLERANCE[dtype] * float(wanted.abs().max())
        torch.testing.assert_close(mine, wanted, rtol=2 * TOLERANCE[dtype], atol=near)


def test_attention_with_importance_lengths_and_dropout(cuda: str) -> None:
    q = randn(3, 8, 2, 16)
    options: dict[str, Any] = {"lengths": torch.tensor([8, 3, 5]), "dropout": 0.25, "seed": 7}
    results = []
    for device in (cuda, "cpu"):
        x = leaf(q, device, torch.float32)
        found = attention(x, x, x, return_importance=True, **options)
        assert {t.device.type for t in (found.out, found[2], found[3])} == {device}
        found.out.square().sum().backward()
        results.append([t.detach().cpu() for t in (found.out, found[2], found[3], x.grad)])
    for mine, wanted in zip(*results, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)


def test_mixed_devices_are_refused_by_name(cuda: str) -> None:
    x, w = randn(4, 16), randn(8, 16)
    with pytest.raises(ValueError, match="linear: x is on cuda:0 and w on the CPU, expected one"):
        linear(x.to(cuda), w)
    with pytest.raises(ValueError, match="linear: x is on the CPU and w on cuda:0, expected one"):
        linear(x, w.to(cuda))
    with pytest.raises(ValueError, match="linear: x is on cuda:0 and bias on the CPU, expected"):
        linear(x.to(cuda), w.to(cuda), bias=torch.zeros(8))
    q = randn(1, 4, 2, 8)
    with pytest.raises(ValueError, match="attention: q is on cuda:0 and mask on the CPU, expected"):
        attention(*[q.to(cuda)] * 3, mask=torch.ones(1, 1, 1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="attention: lengths is on cuda:0, expected an array in h"):
        attention(*[q.to(cuda)] * 3, lengths=torch.tensor([3]).to(cuda))
    with pytest.raises(TypeError, match=r"linear: x\.dtype is float64"):
        linear(x.to(cuda).double(), w.to(cuda))
