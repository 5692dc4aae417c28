"""Layers that compute through spatile, in the place of PyTorch's and with their parameters."""

from __future__ import annotations

import torch
from torch import nn

from spatile.ops.sparse_matrix import SparseMatrix
from spatile.torch.functional import LinearProduct, dropout
from spatile.torch.parameters import unwrap

__all__ = ["Dropout", "Linear", "restore_layers", "swap_layers"]


class Linear(nn.Linear):  # type: ignore[misc]
    """``nn.Linear`` through :func:`spatile.linear`: float32, bfloat16 or float16, CPU or CUDA.

    Sums are float32. Under autocast, inputs are cast as ``nn.Linear``'s are. Not differentiable
    twice.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(…, in_features) → (…, out_features) of the same dtype."""
        return product(autocast(input), self.weight, self.bias)


class Dropout(nn.Dropout):  # type: ignore[misc]
    """``nn.Dropout`` through :func:`spatile.dropout`, which on the CPU draws numbers much faster.

    One seed a call is drawn from PyTorch's default generator, the CPU's.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Any shape; float32, bfloat16 or float16, on the CPU or a CUDA device."""
        if not self.training or self.p == 0.0:
            return input
        if self.p == 1.0:
            return input * 0.0
        return dropout(input, p=self.p)


def autocast(x: torch.Tensor) -> torch.Tensor:
    """``x`` as a matrix product takes it under autocast; as it is outside."""
    if torch.is_autocast_enabled(x.device.type):
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    structure: SparseMatrix | None = None,
) -> torch.Tensor:
    """What a layer gives for ``x`` as a matrix product takes it; see :class:`LinearProduct`."""
    if x.dtype == torch.float16 and x.device.type == "cuda":
        # A GPU multiplies float16 by float16 on its tensor cores, by float32 without them.
        weight = weight.to(x.dtype)
    out: torch.Tensor = LinearProduct.apply(x, weight, bias, structure)
    return out


def swap_layers(model: nn.Module, *, linear: bool = True, dropout: bool = True) -> tuple[str, ...]:
    """Have the linear and dropout layers of ``model`` compute through spatile.

    In place: an ``nn.Linear`` becomes a :class:`Linear`, an ``nn.Dropout`` that does not work in
    place a :class:`Dropout`, with the same parameters. Layers of other classes, derived ones too,
    stay as they are. Returns the names of the layers swapped; :func:`restore_layers` undoes it.

    On the CPU dropout is always faster so, linear layers are where PyTorch's matrix products don't
    suit the processor: AMD's, for example, on which MKL leaves half of an AVX-512 unit idle. On a
    GPU neither was measured.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.ReLU())
    >>> swap_layers(model), restore_layers(model)
    (('0', '1'), ('0', '1'))
    """
    found = []
    for name, module in unwrap(model).named_modules():
        if linear and type(module) is nn.Linear:
            module.__class__ = Linear
        elif dropout and type(module) is nn.Dropout and not module.inplace:
            module.__class__ = Dropout
        else:
            continue
        found.append(name)
    return tuple(found)


def restore_layers(model: nn.Module) -> tuple[str, ...]:
    """Undo :func:`swap_layers`; returns the names of the layers restored."""
    found = []
    for name, module in unwrap(model).named_modules():
        if type(module) is Linear:
            module.__class__ = nn.Linear
        elif type(module) is Dropout:
            module.__class__ = nn.Dropout
        else:
            continue
        found.append(name)
    return tuple(found)
