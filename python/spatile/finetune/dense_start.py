"""The dense stage as a run of its own, and runs that start from where it ended.

One dense model may so serve many pruned ones: every cell of a sweep, every step of a search.
"""

from __future__ import annotations

import os
from dataclasses import fields

from spatile.finetune.settings import Settings

__all__ = ["DENSE_FIELDS", "dense_only", "from_dense"]

#: Settings that decide what the dense stage ends with. The others act later alone.
DENSE_FIELDS = frozenset(
    [
        "model",
        "data",
        "epochs_dense",
        "batch_size",
        "eval_batch_size",
        "lr",
        "lr_dense",
        "warmup",
        "weight_decay",
        "max_length",
        "attention",
        "linear",
        "bf16",
        "seed",
        "data_seed",
        "train_rows",
        "dev_rows",
        "dev_ids",
        "overlap",
        "text",
        "pair",
        "label",
        "kind",
        "labels",
        "positive",
        "checkpoint_every",
    ]
)


def dense_only(settings: Settings) -> Settings:
    """``settings`` of a run that is the dense stage and nothing else: no group is pruned.

    Raises ValueError where there is no dense stage.

    >>> dense_only(Settings("m", "d", 0.5, lr=1e-4)).sparsity
    0.0
    """
    if settings.epochs_dense <= 0:
        raise ValueError(
            f"finetune: epochs_dense is {settings.epochs_dense:g}, expected a dense stage, from "
            f"which the pruned models start"
        )
    kept = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name in DENSE_FIELDS}
    return Settings(
        **kept,
        sparsity=0.0,
        saliency="magnitude",
        prunings=1,
        epochs_reweighted=0.0,
        epochs_retrain=0.0,
        distill=0.0,
        distill_hidden=0.0,
        distill_attention=0.0,
    )


def from_dense(settings: Settings, checkpoint: str | os.PathLike[str]) -> Settings:
    """``settings`` of a run whose dense stage is ``checkpoint``, and which starts with the next.

    The run evaluates the dense model at its step 0 and keeps it as its own dense stage, which is
    also what it distils from.

    >>> from_dense(Settings("m", "d", 0.5), "dense").epochs_dense
    0.0
    """
    return settings.with_changes(model=os.path.realpath(checkpoint), epochs_dense=0.0)
