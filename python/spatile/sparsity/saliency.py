"""What a group's worth may be told by. Names only: the computing is where its inputs are."""

from __future__ import annotations

from typing import Literal

__all__ = ["SALIENCIES", "Saliency"]

#: See :class:`spatile.torch.Pruner`.
Saliency = Literal["magnitude", "movement", "taylor", "second-order"]
SALIENCIES: tuple[Saliency, ...] = ("magnitude", "movement", "taylor", "second-order")
