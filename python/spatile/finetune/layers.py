"""Which layers a run trains with: PyTorch's, or spatile's in their place."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from spatile.finetune.run_folder import RunFolder
from spatile.torch import Linear, swap_layers

__all__ = ["faster_linear", "use_layers"]

# A fully connected layer of a small encoder and a batch for it: the processor is asked, not the
# model, so that runs on one machine get one answer.
_TOKENS, _IN, _OUT = 512, 384, 1536
_ROUNDS = 5
# Between libraries that are equally good, noise must not decide.
_FASTER = 1.25


def use_layers(run: RunFolder, model: Any) -> None:
    """Swap the model's layers as the run's settings say.

    What "auto" came to is noted in the run's folder, for a resumed run must compute alike.
    """
    if "linear" not in run.state:
        chosen = run.settings.linear
        if chosen == "auto":
            chosen = "torch" if run.settings.bf16 else faster_linear()
        run.state["linear"] = chosen
        run.write()
    swap_layers(model, linear=run.state["linear"] == "spatile")


def faster_linear() -> str:
    """``"spatile"`` where its products are clearly faster than PyTorch's on this processor.

    Forward and backward of one layer with PyTorch's and spatile's numbers of threads, by turns.
    Draws from a generator of its own.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_TOKENS, _IN, generator=generator)
    weight = torch.randn(_OUT, _IN, generator=generator)
    steps = [_step(kind, x, weight) for kind in (nn.Linear, Linear)]
    best = [float("inf")] * len(steps)
    for turn in range(_ROUNDS + 1):
        for i, step in enumerate(steps):
            start = time.perf_counter()
            step()
            if turn > 0:
                best[i] = min(best[i], time.perf_counter() - start)
    return "spatile" if best[0] > _FASTER * best[1] else "torch"


def _step(kind: type[nn.Linear], x: torch.Tensor, weight: torch.Tensor) -> Callable[[], None]:
    layer = nn.utils.skip_init(kind, _IN, _OUT)
    layer.weight = nn.Parameter(weight.clone())
    nn.init.zeros_(layer.bias)
    inputs = x.clone().requires_grad_()

    def step() -> None:
        out = layer(inputs)
        torch.autograd.grad(out, [inputs, *layer.parameters()], out.detach())

    return step
