"""The distillation loss."""

from __future__ import annotations

import pytest
import torch

from spatile.torch import QueriesAndKeys, attention_loss, distillation_loss, hidden_loss


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


def test_regression_is_the_squared_difference() -> None:
    assert float(distillation_loss(torch.tensor([[1.0]]), torch.tensor([[3.0]]))) == 4.0


def test_hidden_states_count_relative_to_the_teachers_and_without_padding() -> None:
    teacher = torch.ones(1, 3, 4)
    student = teacher.clone()
    student[0, 0] = 3.0  # 16 off, of the 8 that two valid tokens hold
    student[0, 2] = 100.0  # padding
    mask = torch.tensor([[1, 1, 0]])
    assert float(hidden_loss([student], [teacher], attention_mask=mask)) == pytest.approx(2.0)
    loss = hidden_loss([student, teacher], [teacher, teacher], attention_mask=mask)
    assert float(loss) == pytest.approx(1.0)
    scaled = hidden_loss([5 * student], [5 * teacher], attention_mask=mask)
    assert float(scaled) == pytest.approx(2.0)


def test_hidden_states_count_where_each_layer_has_tokens() -> None:
    teacher = torch.ones(1, 3, 4)
    student = teacher.clone()
    student[0, 1:] = 0.0  # gone from the second layer on
    masks = [torch.tensor([[True, True, True]]), torch.tensor([[True, False, False]])]
    loss = hidden_loss([teacher, student], [teacher, teacher], attention_mask=masks)
    assert float(loss) == 0.0
    both = hidden_loss([student, student], [teacher, teacher], attention_mask=masks)
    assert float(both) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="attention_mask has 1 layers, expected 2"):
        hidden_loss([student, student], [teacher, teacher], attention_mask=masks[:1])


def test_attention_is_the_divergence_of_the_probabilities() -> None:
    torch.manual_seed(0)
    q, k, q2, k2 = (torch.randn(2, 5, 8) for _ in range(4))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])

    def probabilities(queries: torch.Tensor, keys: torch.Tensor, b: int, h: int) -> torch.Tensor:
        n, part = int(mask[b].sum()), slice(4 * h, 4 * h + 4)
        scores = queries[b, :n, part].double() @ keys[b, :n, part].double().T
        return torch.softmax(scores / 2.0, -1)

    expected, count = 0.0, 0
    for b in range(2):
        for h in range(2):
            p, found = probabilities(q2, k2, b, h), probabilities(q, k, b, h)
            expected += float((p * (p / found).log()).sum()) / 2
        count += int(mask[b].sum())
    student = (q.requires_grad_(), k.requires_grad_())
    loss = attention_loss([student], [(q2, k2)], head_dim=4, attention_mask=mask)
    assert loss.item() == pytest.approx(expected / count, rel=1e-5)
    loss.backward()
    assert torch.isfinite(q.grad).all()
    # Padded keys are in no probability, padded queries in no mean.
    assert k.grad[1, 3:].abs().max() == 0
    assert q.grad[1, 3:].abs().max() == 0


def test_queries_and_keys_are_those_of_the_run() -> None:
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(
        vocab_size=9, dim=8, n_layers=2, n_heads=2, hidden_dim=16, attn_implementation="eager"
    )
    model = DistilBertModel(config).eval()
    with QueriesAndKeys(model) as kept:
        out = model(input_ids=torch.tensor([[1, 2, 3]]), output_attentions=True)
        layers = kept.layers
    for (q, k), attention in zip(layers, out.attentions, strict=True):
        q, k = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k))
        torch.testing.assert_close(torch.softmax(q @ k.mT / 2.0, -1), attention)
    model(input_ids=torch.tensor([[4, 5]]))
    assert kept.layers[0][0] is layers[0][0]
    with pytest.raises(ValueError, match="Linear has no query projections"):
        QueriesAndKeys(torch.nn.Linear(2, 2))


def test_bad_arguments() -> None:
    logits = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"expected \(2, 2\)"):
        distillation_loss(logits, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="temperature"):
        distillation_loss(logits, logits, temperature=0.0)
    with pytest.raises(ValueError, match="hidden_loss: student and teacher have 1 and 0 layers"):
        hidden_loss([logits], [])
    with pytest.raises(ValueError, match=r"teacher's hidden state.shape is \(2, 3\)"):
        hidden_loss([logits], [torch.zeros(2, 3)])
    pair, other = (torch.zeros(1, 2, 8),) * 2, (torch.zeros(1, 2, 4),) * 2
    with pytest.raises(ValueError, match=r"teacher's queries.shape is \(1, 2, 4\)"):
        attention_loss([pair], [other], head_dim=4)
    longer = (pair[0], torch.zeros(1, 3, 8))
    with pytest.raises(ValueError, match=r"teacher's keys.shape is \(1, 3, 8\), expected \(1, 2"):
        attention_loss([pair], [longer], head_dim=4)
    with pytest.raises(ValueError, match=r"student's keys.shape is \(1, 3, 8\), expected \(1, 2"):
        attention_loss([longer], [longer], head_dim=4)
    for head_dim in (3, 0, -4):
        with pytest.raises(ValueError, match=f"head_dim is {head_dim}, expected a divisor of the"):
            attention_loss([pair], [pair], head_dim=head_dim)
    with pytest.raises(ValueError, match=r"attention_mask.shape is \(1, 3\), expected \(1, 2\)"):
        attention_loss([pair], [pair], head_dim=4, attention_mask=torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"student's queries.shape is \(2, 2\), expected \(batch"):
        attention_loss([(logits, logits)], [(logits, logits)], head_dim=2)
