"""What a group's worth may be told by. Names only: the computing is where its inputs are."""

from __future__ import annotations

from typing import Literal

__all__ = ["SALIENCIES", "SECOND_ORDER", "Saliency"]

#: See :class:`spatile.torch.Pruner`.
Saliency = Literal["magnitude", "movement", "taylor", "reconstruction", "second-order"]
SALIENCIES: tuple[Saliency, ...] = (
    "magnitude",
    "movement",
    "taylor",
    "reconstruction",
    "second-order",
)
#: Those that look at calibration texts, and have what is kept make up for the rest.
SECOND_ORDER: tuple[Saliency, ...] = ("reconstruction", "second-order")
