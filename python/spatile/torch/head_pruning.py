"""Cascade head pruning while training.

Source: SpAtten (HPCA 2021), cascade head pruning.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from spatile.torch.cascade_pruning import CascadePruning

__all__ = ["HeadPruning"]


class HeadPruning(CascadePruning):
    """Drops the least important heads of each input, layer by layer, as the packed model will.

    Used like :class:`TokenPruning`, which says what ``gradual``, ``delay`` and ``unit`` are, and
    together with it or alone. A head that an input has lost gives zeros before W_O in all later
    layers, and its importance counts for no token; of pruned value rows the bias stays. What is
    kept is what ``Encoder.load(..., heads=schedule)`` keeps: by the magnitude of a head's results
    summed over the layers so far. Heads that were cut away for all inputs (:func:`apply_structure`)
    keep their numbers: the schedule's fractions are of the dense model's heads, a layer that has
    fewer loses fewer, and each keeps at least one of its own.

    Not so where the packed model merges W_V and W_O (``Plan.precompute``): it measures a head's
    magnitude behind W_O then, training before it, and may keep other heads.

    It makes the packed model faster, not training: here every head is still projected.

    Raises TypeError and ValueError for arguments out of range; for the rest see :meth:`attach`.

    >>> import torch, transformers
    >>> from spatile.sparsity import Schedule
    >>> config = transformers.BertConfig(hidden_size=32, num_hidden_layers=2, vocab_size=99,
    ...                                  num_attention_heads=4, intermediate_size=64)
    >>> model = transformers.BertForSequenceClassification(config)
    >>> with HeadPruning(Schedule.per_layer([1, 0.5])).attach(model) as pruning:
    ...     model(torch.arange(16)[None]).logits.sum().backward()
    ...     pruning.kept.heads.sum(axis=2).tolist()
    [[4], [2]]
    """

    kind: ClassVar[Literal["tokens", "heads"]] = "heads"
