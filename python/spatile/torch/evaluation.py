"""Meanwhile the model as it is evaluated dense: for what asks it about its weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from spatile.torch.cascade_pause import without_cascade

__all__ = ["evaluation_mode"]


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Meanwhile no module of ``model`` is training, and it keeps all tokens and heads.

    Afterwards each module is in the mode that it was in, for some may be frozen in evaluation mode.
    """
    training = {module: module.training for module in model.modules()}
    try:
        with without_cascade(model):
            model.eval()
            yield
    finally:
        for module, was in training.items():
            module.training = was
