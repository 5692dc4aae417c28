"""What a PyTorch model says on a split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spatile.finetune.batches import Encoded

__all__ = ["predict_logits"]


@torch.no_grad()  # type: ignore[untyped-decorator]
def predict_logits(
    model: Any,
    data: Encoded,
    batch_size: int,
    *,
    hidden: Callable[[int, torch.Tensor], None] | None = None,
) -> NDArray[np.float32]:
    """Logits (n, outputs) in the order of ``data``; draws no random number.

    Rows are batched by length, longest first. The model is left in the mode it was in. ``hidden``
    is given each row's place and what the layers made of it, bfloat16 (tokens, layers, width).
    """
    was_training = model.training
    model.eval()
    # What counts is what the packed model will give: float32, also while training is under
    # autocast, which accelerate wraps into the model's forward.
    run = getattr(model, "_original_forward", model)
    lengths = data.lengths
    order = np.argsort([-n for n in lengths], kind="stable")
    parts = []
    for start in range(0, len(order), batch_size):
        places = [int(i) for i in order[start : start + batch_size]]
        batch = data.pad([data.rows[i] for i in places])
        outputs = run(**batch, output_hidden_states=hidden is not None)
        parts.append(outputs.logits.float().numpy())
        if hidden is not None:
            layers = torch.stack(outputs.hidden_states[1:], dim=2).bfloat16()
            for i, row in zip(places, layers, strict=True):
                hidden(i, row[: lengths[i]].clone())
    model.train(was_training)
    logits = np.empty((len(data), parts[0].shape[1]), dtype=np.float32)
    logits[order] = np.concatenate(parts)
    return logits
