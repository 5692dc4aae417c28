"""Cascade token pruning while training.

Source: SpAtten (HPCA 2021), cascade token pruning.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import nn

from spatile.sparsity import Schedule
from spatile.torch.cascade import token_masks
from spatile.torch.cascade_pass import Fractions
from spatile.torch.cascade_pruning import CascadePruning

__all__ = ["TokenPruning"]

# What these heads say of a token that is gone, nobody has defined.
_PER_TOKEN = (
    "ForQuestionAnswering",
    "ForTokenClassification",
    "ForMaskedLM",
    "ForPreTraining",
    "ForCausalLM",
    "LMHeadModel",
)


class TokenPruning(CascadePruning):
    """Drops the least important tokens of each input, layer by layer, as the packed model will.

    In a plain loop::

        pruning = TokenPruning(Schedule.linear(0.5)).attach(model)
        for step, batch in enumerate(batches):
            pruning.progress = min(1.0, step / 1000)
            model(**batch).loss.backward()
            ...
        pruning.detach()

    In a ``Trainer`` there is nothing else to write: ``callbacks=[TokenPruning(schedule,
    gradual=1)]``. It attaches itself when training begins, and stays for evaluation.

    A dropped token is gone from the rest of its layer and from all later ones, which are smaller,
    so that training is faster too; gradients flow through what is kept. What is kept is what
    ``Encoder.load(..., tokens=schedule)`` keeps: by importance summed over the layers so far, [CLS]
    always, padding never. It is the same in evaluation and training, in any batch.

    A sequence classifier sees [CLS] as ever. ``last_hidden_state`` and ``hidden_states`` keep their
    shape, with zeros where a token is gone; :attr:`masks` says where, and a mean over tokens has to
    leave them out. Models with a head for each token or for spans are refused.

    Parameters
    ----------
    schedule : what each layer works on
    protect : positions that stay besides each input's first, negative ones counted from its end
    gradual : over how many epochs (or steps) of a Trainer's run the kept fractions fall from 1 to
        the schedule's, linearly; 0: the schedule from the first step on
    delay : how many of them pass before
    unit : "epochs" or "steps", of both

    In a Trainer :attr:`progress` follows from the step alone, so a resumed run goes on as if it had
    never stopped. When the schedule is reached, the best metric so far is forgotten, so that
    ``load_best_model_at_end`` chooses among models that are pruned to the end. Works together with
    :class:`HeadPruning`, :class:`PruningCallback`, accumulation, autocast and
    DistributedDataParallel. Calibration for second-order pruning is done with all tokens.

    Raises TypeError and ValueError for arguments out of range; for the rest see :meth:`attach`.

    >>> import torch, transformers
    >>> from spatile.sparsity import Schedule
    >>> config = transformers.BertConfig(hidden_size=32, num_hidden_layers=3, vocab_size=99,
    ...                                  num_attention_heads=2, intermediate_size=64)
    >>> model = transformers.BertForSequenceClassification(config)
    >>> with TokenPruning(Schedule.per_layer([1, 0.5, 0.25])).attach(model) as pruning:
    ...     model(torch.arange(16)[None]).logits.sum().backward()
    ...     pruning.kept.counts.tolist()
    [[16], [8], [4]]
    """

    kind: ClassVar[Literal["tokens", "heads"]] = "tokens"

    def __init__(
        self,
        schedule: Schedule,
        *,
        protect: Sequence[int] = (),
        gradual: float = 0.0,
        delay: float = 0.0,
        unit: Literal["epochs", "steps"] = "epochs",
    ) -> None:
        super().__init__(schedule, gradual=gradual, delay=delay, unit=unit)
        try:
            self.protect = tuple(operator.index(position) for position in protect)
        except TypeError:
            raise TypeError(
                f"TokenPruning: protect is {protect!r}, expected a list of positions"
            ) from None

    @property
    def masks(self) -> list[torch.Tensor]:
        """Of each layer's output in the model's last run, (batch, sequence) bool: what it holds.

        They are where the model's inputs were. The last one says over which tokens a mean is to be
        taken. Raises RuntimeError where none has run since it was attached.
        """
        found = None if self._model is None else token_masks(self._model)
        if found is None:
            raise RuntimeError("TokenPruning: no batch has run, so nothing is known of tokens yet")
        return found

    def _fractions(self) -> Fractions:
        return Fractions(self.schedule, self.progress, self.protect)

    def _check_model(self, model: nn.Module) -> None:
        super()._check_model(model)
        name = type(model).__name__
        if name.endswith(_PER_TOKEN):
            raise NotImplementedError(
                f"TokenPruning: model is a {name}, expected a sequence classifier or a model "
                f"without a head: this head needs all tokens"
            )
