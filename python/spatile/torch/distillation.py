"""Learning from a teacher: here mostly the model's own dense stage."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from spatile.torch.parameters import unwrap

__all__ = ["QueriesAndKeys", "attention_loss", "distillation_loss", "hidden_loss"]

Tensors = Sequence[torch.Tensor]


def distillation_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, *, temperature: float = 2.0
) -> torch.Tensor:
    """How far the student's outputs are from the teacher's, a scalar tensor (float32).

    Logits (…, classes): T²·KL(teacher‖student) of the softened distributions, averaged over
    examples (Hinton et al. 2015; T² keeps gradients of the size they have at T = 1). With one
    class, that is regression: the mean squared difference. No gradient flows into the teacher.

    Raises ValueError for shapes that differ and a temperature that is not positive.

    >>> logits = torch.tensor([[2.0, 0.0]])
    >>> float(distillation_loss(logits, logits))
    0.0
    """
    _check_shape("distillation_loss", "teacher_logits", teacher_logits, student_logits)
    if not temperature > 0:
        raise ValueError(
            f"distillation_loss: temperature is {temperature}, expected a positive number"
        )
    student, teacher = student_logits.float(), teacher_logits.detach().float()
    if student.shape[-1] == 1:
        return F.mse_loss(student, teacher)
    student, teacher = student.flatten(0, -2), teacher.flatten(0, -2)
    divergence = F.kl_div(
        F.log_softmax(student / temperature, dim=-1),
        F.log_softmax(teacher / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2


def hidden_loss(
    student: Tensors,
    teacher: Tensors,
    *,
    attention_mask: torch.Tensor | Tensors | None = None,
) -> torch.Tensor:
    """How far hidden states are from the teacher's, relative to those, a scalar (float32).

    ``student`` and ``teacher`` are equally many of shape (batch, sequence, width). Of each layer
    Σ‖s − t‖² / Σ‖t‖² over the valid tokens of ``attention_mask`` (batch, sequence), or one for each
    layer where tokens go (:attr:`TokenPruning.masks`); the mean over layers. No gradient flows into
    the teacher.

    Raises ValueError for numbers of layers or shapes that differ.

    >>> one = torch.ones(1, 2, 4)
    >>> float(hidden_loss([1.5 * one], [one]))
    0.25
    """
    _check_layers("hidden_loss", student, teacher)
    if attention_mask is None or isinstance(attention_mask, torch.Tensor):
        masks: Sequence[torch.Tensor | None] = [attention_mask] * len(student)
    elif len(attention_mask) == len(student):
        masks = attention_mask
    else:
        raise ValueError(
            f"hidden_loss: attention_mask has {len(attention_mask)} layers, expected {len(student)}"
        )
    losses = []
    for mine, target, mask in zip(student, teacher, masks, strict=True):
        _check_shape("hidden_loss", "teacher's hidden state", target, mine)
        wanted = target.detach().float()
        error = (mine.float() - wanted).square().sum(dim=-1)
        power = wanted.square().sum(dim=-1)
        if mask is not None:
            valid = mask.to(error)
            error, power = error * valid, power * valid
        losses.append(error.sum() / power.sum().clamp_min(torch.finfo(torch.float32).tiny))
    return torch.stack(losses).mean()


def attention_loss(
    student: Sequence[tuple[torch.Tensor, torch.Tensor]],
    teacher: Sequence[tuple[torch.Tensor, torch.Tensor]],
    *,
    head_dim: int,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """How far attention's probabilities are from the teacher's, a scalar tensor (float32).

    Both hold a layer's queries and keys, each (batch, sequence, heads · ``head_dim``), as
    :class:`QueriesAndKeys` keeps them. KL(teacher‖student) of softmax(Q·Kᵀ/√head_dim), averaged
    over heads and the valid queries of ``attention_mask`` (batch, sequence); the mean over layers.
    It makes matrices of sequence². No gradient flows into the teacher.

    Raises ValueError for numbers of layers, heads or tokens that differ (a teacher with other heads
    has no probabilities to compare with), a ``head_dim`` that does not divide the width, and a mask
    of another shape.
    """
    _check_layers("attention_loss", student, teacher)
    losses = []
    for mine, target in zip(student, teacher, strict=True):
        _check_attention(mine, target, head_dim, attention_mask)
        q, k = target
        wanted = _log_probabilities(q.detach(), k.detach(), head_dim, attention_mask)
        found = _log_probabilities(*mine, head_dim, attention_mask)
        # A masked key has probability 0 in both: 0 · (−inf) counts nothing.
        gap = (wanted - found).masked_fill(wanted.isinf(), 0.0)
        terms = wanted.exp() * gap
        per_query = terms.sum(dim=-1).mean(dim=1)
        if attention_mask is None:
            losses.append(per_query.mean())
        else:
            valid = attention_mask.to(per_query)
            losses.append((per_query * valid).sum() / valid.sum().clamp_min(1.0))
    return torch.stack(losses).mean()


_QUERY = re.compile(r".*\.(attention\.self\.query|attention\.q_lin)\Z")
_KEY_OF = {"query": "key", "q_lin": "k_lin"}


class QueriesAndKeys:
    """While open, keeps what each layer's query and key projections give::

        with QueriesAndKeys(model) as kept:
            model(**batch)
            kept.layers     # [(queries, keys), …], in the model's order

    For BERT, RoBERTa and DistilBERT; raises ValueError for a model without such projections.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = dict(unwrap(model).named_modules())
        self._modules = []
        for name, module in modules.items():
            if _QUERY.match(name):
                stem, _, last = name.rpartition(".")
                self._modules.append((module, modules[f"{stem}.{_KEY_OF[last]}"]))
        if not self._modules:
            raise ValueError(
                f"QueriesAndKeys: {type(unwrap(model)).__name__} has no query projections, "
                f"expected BERT, RoBERTa or DistilBERT"
            )
        self._kept: dict[tuple[int, int], torch.Tensor] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> QueriesAndKeys:
        self._kept.clear()
        for layer, pair in enumerate(self._modules):
            for which, module in enumerate(pair):
                self._hooks.append(module.register_forward_hook(self._keeper(layer, which)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    @property
    def layers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(queries, keys) of each layer in the last run."""
        return [(self._kept[i, 0], self._kept[i, 1]) for i in range(len(self._modules))]

    def _keeper(self, layer: int, which: int) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, out: torch.Tensor) -> None:
            self._kept[layer, which] = out

        return keep


def _log_probabilities(
    queries: torch.Tensor, keys: torch.Tensor, head_dim: int, mask: torch.Tensor | None
) -> torch.Tensor:
    """(batch, heads, queries, keys), −inf where a key is masked."""
    q, k = (t.float().unflatten(-1, (-1, head_dim)).transpose(1, 2) for t in (queries, keys))
    scores = q @ k.transpose(-1, -2) / math.sqrt(head_dim)
    if mask is not None:
        valid = mask.to(scores.device).bool()
        scores = scores.masked_fill(~valid[:, None, None, :], -torch.inf)
    return scores.log_softmax(dim=-1)


def _check_attention(
    student: tuple[torch.Tensor, torch.Tensor],
    teacher: tuple[torch.Tensor, torch.Tensor],
    head_dim: int,
    mask: torch.Tensor | None,
) -> None:
    op, queries = "attention_loss", student[0]
    if queries.ndim != 3:
        raise ValueError(
            f"{op}: student's queries.shape is {tuple(queries.shape)}, expected (batch, sequence, "
            f"heads · head_dim)"
        )
    _check_shape(op, "student's keys", student[1], queries)
    for name, found in zip(("teacher's queries", "teacher's keys"), teacher, strict=True):
        _check_shape(op, name, found, queries)
    width = queries.shape[-1]
    if head_dim < 1 or width % head_dim:
        raise ValueError(f"{op}: head_dim is {head_dim}, expected a divisor of the width {width}")
    if mask is not None and mask.shape != queries.shape[:2]:
        raise ValueError(
            f"{op}: attention_mask.shape is {tuple(mask.shape)}, expected "
            f"{tuple(queries.shape[:2])}"
        )


def _check_layers(op: str, student: Sequence[Any], teacher: Sequence[Any]) -> None:
    if len(student) != len(teacher) or not student:
        raise ValueError(
            f"{op}: student and teacher have {len(student)} and {len(teacher)} layers, "
            f"expected equally many, at least one"
        )


def _check_shape(op: str, name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    if found.shape != expected.shape:
        raise ValueError(
            f"{op}: {name}.shape is {tuple(found.shape)}, expected {tuple(expected.shape)}"
        )
