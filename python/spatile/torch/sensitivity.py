"""How much a model's output changes with what each of its linear layers gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from spatile.torch.evaluation import evaluation_mode
from spatile.torch.parameters import batch_for, unwrap

__all__ = ["model_output", "output_sensitivities"]

# A backward pass needs something of every layer, five times what a pass without gradients takes.
_TOKENS_AT_ONCE = 4096


def output_sensitivities(
    model: nn.Module, modules: Sequence[str], batches: Iterable[Mapping[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """For each feature that ``modules`` give, the sum of (∂ model's output / ∂ feature)².

    Over all tokens of ``batches`` and all numbers of the output, which are the logits (of starts
    and of ends, too), or the hidden states of valid tokens where the model gives none: the diagonal
    of the Gauss-Newton matrix of the output's squared change. Times a feature's mean squared error
    it says, to second order, what the output loses, were a token's error independent of its
    gradient. The sum over the output's numbers is estimated without bias from one random sign for
    each (Hutchinson 1989), drawn by a fixed seed; no labels are needed.

    Returns float64 (out,) by module name, on the model's device. ``batches`` may be on any. Raises
    ValueError for empty ``batches``, for a module
    that does not run, for gradients that are NaN or infinite, and where the output depends on none
    of ``modules``, as with a head of zeros: then nothing tells them apart. The model is in
    evaluation mode, keeps all tokens and heads, and no gradient of a parameter is touched,
    meanwhile. Memory: that of a training step on 4096 tokens, however large a batch is.
    """
    inner = unwrap(model)
    named = dict(inner.named_modules())
    found: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}

    def listen(name: str) -> Any:
        def hear(module: nn.Module, args: Any, out: torch.Tensor) -> None:
            outputs[name] = out if out.requires_grad else out.requires_grad_()

        return hear

    hooks = [named[name].register_forward_hook(listen(name)) for name in modules]
    signs = torch.Generator().manual_seed(0)
    try:
        with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(inner):
            for batch in (batch_for(inner, p) for whole in batches for p in _parts(whole)):
                for name, sums in _squares(model_output(inner, batch), outputs, signs).items():
                    found[name] = found[name] + sums if name in found else sums
                outputs.clear()
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ValueError("output_sensitivities: batches is empty, expected at least one batch")
    _check(modules, found)
    return found


def _squares(
    out: torch.Tensor, features: Mapping[str, torch.Tensor], signs: torch.Generator
) -> dict[str, torch.Tensor]:
    """Over all tokens, the squares of the gradient of ``out`` with random signs, by name."""
    drawn = torch.randint(0, 2, out.shape, generator=signs, device="cpu").to(out) * 2 - 1
    gradients = torch.autograd.grad((out * drawn).sum(), [*features.values()], allow_unused=True)
    found = {}
    for (name, feature), gradient in zip(features.items(), gradients, strict=True):
        # Of some the output may not know anything.
        known = torch.zeros_like(feature) if gradient is None else gradient
        found[name] = known.flatten(0, -2).double().square().sum(0)
    return found


def _parts(batch: Mapping[str, torch.Tensor]) -> Iterator[Mapping[str, torch.Tensor]]:
    """The batch, some rows at a time."""
    tensors = {k: v for k, v in batch.items() if isinstance(v, torch.Tensor) and v.ndim > 0}
    shape = next((v.shape for v in tensors.values() if v.ndim >= 2), torch.Size((1, 1)))
    count = max(1, _TOKENS_AT_ONCE // max(1, shape[1]))
    for start in range(0, shape[0], count):
        rows = slice(start, start + count)
        cut = {k: v[rows] for k, v in tensors.items() if v.shape[0] == shape[0]}
        yield {**batch, **cut}


def _check(modules: Sequence[str], found: Mapping[str, torch.Tensor]) -> None:
    for name in modules:
        if name not in found:
            raise ValueError(f"output_sensitivities: {name} did not run")
        if not bool(torch.isfinite(found[name]).all()):
            raise ValueError(
                f"output_sensitivities: the gradient at {name} holds NaN or infinity, expected "
                f"finite numbers: are all weights of the model?"
            )
    if not any(bool(weights.any()) for weights in found.values()):
        raise ValueError(
            f"output_sensitivities: the model's output depends on none of {len(found)} modules, "
            f"expected one at least: are the weights of its head all zero?"
        )


def model_output(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Logits, or hidden states of valid tokens."""
    out = model(**batch)
    first: torch.Tensor
    if isinstance(out, torch.Tensor):
        first = out
    elif getattr(out, "start_logits", None) is not None:  # where an answer starts and ends
        first = torch.stack((out.start_logits, out.end_logits), dim=-1)
    else:
        logits = getattr(out, "logits", None)
        first = out[0] if logits is None else logits
    mask = batch.get("attention_mask")
    tokens = first.ndim == 3 and mask is not None and first.shape[:2] == mask.shape
    return first[mask.bool()] if tokens and mask is not None else first
