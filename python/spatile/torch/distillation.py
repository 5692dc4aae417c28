"""Learning from a teacher: here mostly the model's own dense stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

__all__ = ["distillation_loss"]


def distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    *,
    temperature: float = 2.0,
    hidden: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]] | None = None,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """How far the student's outputs are from the teacher's, a scalar tensor (float32).

    Logits (…, classes): T²·KL(teacher‖student) of the softened distributions, averaged over
    examples (Hinton et al. 2015; T² keeps gradients of the size they have at T = 1). With one
    class, that is regression: the mean squared difference. ``hidden`` = (student's, teacher's)
    hidden states, equally many of shape (batch, sequence, width), adds their mean squared
    differences, averaged over layers and over the valid tokens of ``attention_mask`` (batch,
    sequence). No gradient flows into the teacher.

    Raises ValueError for shapes that differ and a temperature that is not positive.

    >>> logits = torch.tensor([[2.0, 0.0]])
    >>> float(distillation_loss(logits, logits))
    0.0
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"distillation_loss: teacher_logits.shape is {tuple(teacher_logits.shape)}, "
            f"expected {tuple(student_logits.shape)}"
        )
    if not temperature > 0:
        raise ValueError(
            f"distillation_loss: temperature is {temperature}, expected a positive number"
        )
    student, teacher = student_logits.float(), teacher_logits.detach().float()
    if student.shape[-1] == 1:
        loss = F.mse_loss(student, teacher)
    else:
        student, teacher = student.flatten(0, -2), teacher.flatten(0, -2)
        divergence = F.kl_div(
            F.log_softmax(student / temperature, dim=-1),
            F.log_softmax(teacher / temperature, dim=-1),
            reduction="batchmean",
            log_target=True,
        )
        loss = divergence * temperature**2
    return loss if hidden is None else loss + _hidden_loss(*hidden, attention_mask)


def _hidden_loss(
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
    attention_mask: torch.Tensor | None,
) -> torch.Tensor:
    if len(student) != len(teacher) or not student:
        raise ValueError(
            f"distillation_loss: hidden has {len(student)} and {len(teacher)} layers, "
            f"expected equally many, at least one"
        )
    losses = []
    for mine, target in zip(student, teacher, strict=True):
        if mine.shape != target.shape:
            raise ValueError(
                f"distillation_loss: teacher's hidden.shape is {tuple(target.shape)}, "
                f"expected {tuple(mine.shape)}"
            )
        per_token = (mine.float() - target.detach().float()).square().mean(dim=-1)
        if attention_mask is None:
            losses.append(per_token.mean())
        else:
            valid = attention_mask.to(per_token.dtype)
            losses.append((per_token * valid).sum() / valid.sum().clamp_min(1.0))
    return torch.stack(losses).mean()
