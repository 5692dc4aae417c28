"""The distillation loss."""

from __future__ import annotations

import pytest
import torch

from spatile.torch import distillation_loss


def test_zero_for_equal_and_growing_with_distance() -> None:
    teacher = torch.tensor([[2.0, -1.0], [0.5, 0.0]])
    assert float(distillation_loss(teacher, teacher)) == pytest.approx(0.0, abs=1e-7)
    near, far = teacher + torch.tensor([0.1, 0.0]), teacher + torch.tensor([3.0, 0.0])
    assert distillation_loss(near, teacher) < distillation_loss(far, teacher)


def test_is_the_softened_divergence_and_leaves_the_teacher_alone() -> None:
    torch.manual_seed(0)
    student = torch.randn(5, 3, requires_grad=True)
    teacher = torch.randn(5, 3, requires_grad=True)
    p, q = (torch.softmax(t.double() / 3.0, -1) for t in (teacher, student))
    expected = 9.0 * (p * (p / q).log()).sum(-1).mean()
    loss = distillation_loss(student, teacher, temperature=3.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


def test_regression_and_hidden_states() -> None:
    assert float(distillation_loss(torch.tensor([[1.0]]), torch.tensor([[3.0]]))) == 4.0
    same = torch.zeros(1, 2)
    mine, target = torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)
    target[0, 0] = 2.0
    target[0, 2] = 100.0  # padding
    mask = torch.tensor([[1, 1, 0]])
    loss = distillation_loss(same, same, hidden=([mine], [target]), attention_mask=mask)
    assert float(loss) == pytest.approx(2.0)


def test_bad_arguments() -> None:
    logits = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"expected \(2, 2\)"):
        distillation_loss(logits, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="temperature"):
        distillation_loss(logits, logits, temperature=0.0)
    with pytest.raises(ValueError, match="1 and 0 layers"):
        distillation_loss(logits, logits, hidden=([logits], []))
