"""The teacher of a run: its own dense stage, whose outputs the pruned model learns to give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from spatile.finetune.batches import Encoded
from spatile.finetune.checkpoints import load_classifier
from spatile.finetune.scoring import predict_logits
from spatile.finetune.settings import Settings
from spatile.sparsity import Structure
from spatile.torch import (
    QueriesAndKeys,
    apply_structure,
    attention_loss,
    distillation_loss,
    hidden_loss,
    swap_layers,
)
from spatile.torch.cascade import token_masks
from spatile.torch.parameters import unwrap

__all__ = ["Teacher"]


# What hidden states may take that are kept for all epochs; above it they are made anew each time.
_KEPT_BYTES = 2 << 30


class Teacher:
    """Loaded when first asked. ``folder`` is its checkpoint, ``data`` what the student trains on.

    It has no dropout, so its logits are made once for all epochs, and its hidden states, kept in
    bfloat16, where they fit into 2 GiB. Otherwise, and for attention, it runs beside the student.
    """

    def __init__(self, folder: Path, settings: Settings, data: Encoded, *, linear: bool) -> None:
        self._folder, self._settings, self._data, self._linear = folder, settings, data, linear
        self._model: Any = None
        self._logits: torch.Tensor | None = None
        self._hidden: list[torch.Tensor] = []
        self._kept: list[int] = []
        self._keeps_hidden: bool | None = None

    def run(self, student: Any, inputs: dict[str, torch.Tensor]) -> tuple[Any, torch.Tensor]:
        """The student's outputs on a batch, and what is to be added to its loss.

        ``inputs`` are the model's, and ``index``, the rows' places in the data.
        """
        index = inputs.pop("index")
        s = self._settings
        if s.distill_attention > 0 or (s.distill_hidden > 0 and not self._hidden_fits()):
            return self._side_by_side(student, inputs)
        target = self._all_logits()[index]
        if s.distill_hidden == 0:
            outputs = student(**inputs)
            return outputs, s.distill * distillation_loss(outputs.logits, target)
        outputs = student(**inputs, output_hidden_states=True)
        hidden = pad_sequence([self._hidden[i] for i in index.tolist()], batch_first=True)
        loss = s.distill * distillation_loss(outputs.logits, target)
        loss = loss + s.distill_hidden * hidden_loss(
            outputs.hidden_states[1:],
            self._kept_layers(student, list(hidden.unbind(dim=2))),
            attention_mask=_compared(student, inputs),
        )
        return outputs, loss

    def _side_by_side(
        self, student: Any, inputs: dict[str, torch.Tensor]
    ) -> tuple[Any, torch.Tensor]:
        s = self._settings
        with torch.no_grad():
            target, hidden, pairs = _outputs(self._teacher(), inputs)
        found, mine, my_pairs = _outputs(student, inputs)
        loss = s.distill * distillation_loss(found.logits, target.logits)
        mask = inputs.get("attention_mask")
        if s.distill_hidden > 0:
            hidden = self._kept_layers(student, hidden)
            compared = _compared(student, inputs)
            loss = loss + s.distill_hidden * hidden_loss(mine, hidden, attention_mask=compared)
        if s.distill_attention > 0:
            config = self._teacher().config
            head_dim = config.hidden_size // config.num_attention_heads
            loss = loss + s.distill_attention * attention_loss(
                my_pairs, pairs, head_dim=head_dim, attention_mask=mask
            )
        return found, loss

    def _kept_layers(self, student: Any, hidden: list[torch.Tensor]) -> list[torch.Tensor]:
        """The teacher's hidden states that belong to the layers which the student still has."""
        config = unwrap(student).config
        if config.num_hidden_layers == len(hidden):
            return hidden
        if len(self._kept) != config.num_hidden_layers:
            structure = Structure.of_config(config)
            assert structure is not None
            # The teacher, too, may have lost layers since it was dense.
            own = Structure.of_config(self._teacher().config)
            names = range(len(hidden)) if own is None else [k.layer for k in own.layers]
            place = {layer: i for i, layer in enumerate(names)}
            self._kept = [place[layer.layer] for layer in structure.layers]
        return [hidden[i] for i in self._kept]

    def _hidden_fits(self) -> bool:
        """Whether all rows' hidden states are kept: counted once, not for every batch."""
        if self._keeps_hidden is None:
            config = self._teacher().config
            each = 2 * config.hidden_size * config.num_hidden_layers
            self._keeps_hidden = bool(sum(self._data.lengths) * each <= _KEPT_BYTES)
        return self._keeps_hidden

    def _teacher(self) -> Any:
        if self._model is None:
            # Making a model may draw random numbers, at a moment that depends on where a run
            # resumed.
            with torch.random.fork_rng(devices=[]):
                self._model = load_classifier(self._folder, attention=self._settings.attention)
            apply_structure(self._model)
            swap_layers(self._model, linear=self._linear)
            self._model.eval()
        return self._model

    def _all_logits(self) -> torch.Tensor:
        if self._logits is None:
            # In one order whatever the run resumed from, for sums depend on what is padded how.
            size, data = self._settings.eval_batch_size, self._data
            hidden: dict[int, torch.Tensor] = {}
            listen = None if self._settings.distill_hidden == 0 else hidden.__setitem__
            with torch.autocast("cpu", torch.bfloat16, enabled=self._settings.bf16):
                logits = predict_logits(self._teacher(), data, size, hidden=listen)
            self._logits = torch.from_numpy(logits)
            self._hidden = [hidden[i] for i in sorted(hidden)]
        return self._logits


def _compared(
    student: Any, inputs: dict[str, torch.Tensor]
) -> torch.Tensor | list[torch.Tensor] | None:
    """The tokens whose hidden states are compared: those that the student's layers still have."""
    kept = token_masks(student)
    return inputs.get("attention_mask") if kept is None else kept


def _outputs(
    model: Any, inputs: dict[str, torch.Tensor]
) -> tuple[Any, list[torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]:
    """A model's outputs, the hidden states that its layers give, its queries and keys."""
    with QueriesAndKeys(model) as kept:
        outputs = model(**inputs, output_hidden_states=True)
    return outputs, list(outputs.hidden_states[1:]), kept.layers
