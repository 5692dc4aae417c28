"""What a PyTorch model says on a split."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spatile.finetune.batches import Encoded

__all__ = ["predict_logits"]


@torch.no_grad()  # type: ignore[untyped-decorator]
def predict_logits(model: Any, data: Encoded, batch_size: int) -> NDArray[np.float32]:
    """Logits (n, outputs) in the order of ``data``; draws no random number.

    Rows are batched by length, longest first. The model is left in the mode it was in.
    """
    was_training = model.training
    model.eval()
    order = np.argsort([-n for n in data.lengths], kind="stable")
    parts = []
    for start in range(0, len(order), batch_size):
        chosen = [data.rows[i] for i in order[start : start + batch_size]]
        parts.append(model(**data.pad(chosen)).logits.float().numpy())
    model.train(was_training)
    logits = np.empty((len(data), parts[0].shape[1]), dtype=np.float32)
    logits[order] = np.concatenate(parts)
    return logits
