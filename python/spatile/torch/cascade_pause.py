"""Meanwhile without token and head pruning: for those who need what all tokens give."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

__all__ = ["ATTRIBUTE", "without_cascade"]

#: Under which name a module holds the :class:`spatile.torch.cascade.Cascade` that hangs on it.
ATTRIBUTE = "_spatile_cascade"


@contextlib.contextmanager
def without_cascade(model: nn.Module) -> Iterator[None]:
    """Meanwhile ``model`` keeps all tokens and heads."""
    cascades = [m.__dict__[ATTRIBUTE] for m in model.modules() if ATTRIBUTE in m.__dict__]
    before = [cascade.paused for cascade in cascades]
    for cascade in cascades:
        cascade.paused = True
    try:
        yield
    finally:
        for cascade, paused in zip(cascades, before, strict=True):
            cascade.paused = paused
