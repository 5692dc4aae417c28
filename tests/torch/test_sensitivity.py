"""What the model's output makes of each feature inside, against gradients taken one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
)

from spatile.sparsity import Plan
from spatile.torch import Pruner, prune_structure
from spatile.torch.sensitivity import model_output, output_sensitivities

Q = "bert.encoder.layer.0.attention.self.query"
UP, DOWN = (f"bert.encoder.layer.1.{n}.dense" for n in ("intermediate", "output"))


def small(labels: int = 1) -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            vocab_size=50,
            num_labels=labels,
        )
    ).eval()


def batches(count: int = 2) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(0, 50, (3, 7), generator=generator) for _ in range(count)]
    mask = torch.ones(3, 7, dtype=torch.int64)
    mask[1, 4:] = 0
    return [{"input_ids": i, "attention_mask": mask} for i in ids]


def one_by_one(model: nn.Module, name: str, given: list[Any]) -> torch.Tensor:
    """The definition: a backward pass for each number of the output."""
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(lambda m, a, out: seen.append(out))
    total = torch.zeros(model.get_submodule(name).out_features, dtype=torch.float64)  # type: ignore[arg-type]
    for batch in given:
        seen.clear()
        for value in model(**batch).logits.flatten():
            (gradient,) = torch.autograd.grad(value, seen, retain_graph=True)
            total += gradient.double().square().sum((0, 1))
    hook.remove()
    return total


def test_one_output_for_each_text_is_exact() -> None:
    model, given = small(), batches()
    found = output_sensitivities(model, [Q, UP, DOWN], given)
    for name in (Q, UP, DOWN):
        torch.testing.assert_close(found[name], one_by_one(model, name, given), rtol=1e-4, atol=0)


def test_a_large_batch_goes_through_in_parts() -> None:
    model, (given, *others) = small(), batches(200)
    large = {k: torch.cat([batch[k] for batch in (given, *others)]) for k in given}
    large["position_ids"] = torch.arange(7)[None]  # one for all rows
    sizes: list[int] = []
    model.register_forward_pre_hook(
        lambda m, a, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    with torch.inference_mode():
        found = output_sensitivities(model, [Q, UP], [large])
    assert sum(sizes) == 200 * 3 * 7
    assert max(sizes) <= 4096
    wanted = output_sensitivities(model, [Q, UP], [given, *others])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)


def test_several_outputs_are_right_on_average() -> None:
    model, given = small(labels=3), batches(60)
    found = output_sensitivities(model, [UP], given)[UP]
    exact = one_by_one(model, UP, given)
    assert float(found.sum() / exact.sum()) == pytest.approx(1.0, abs=0.1)


def test_hidden_states_of_valid_tokens_are_the_output_of_an_encoder() -> None:
    model, given = small().bert, batches(1)
    assert isinstance(model, BertModel)
    name = DOWN.removeprefix("bert.")
    full = output_sensitivities(model, [name], given)[name]
    shorter = [{k: v[1:2, :4] for k, v in given[0].items()}]
    alone = output_sensitivities(model, [name], shorter)[name]
    padded = [{k: v[1:2] for k, v in given[0].items()}]
    assert (full > alone).all()
    # The signs are drawn alike for the same number of outputs, so padding changes nothing.
    found = output_sensitivities(model, [name], padded)[name]
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=0)


def test_the_model_is_left_as_it_was() -> None:
    model, given = small().train(), batches()
    for parameter in model.bert.embeddings.parameters():
        parameter.requires_grad_(False)
    state = torch.random.get_rng_state()
    first = output_sensitivities(model, [Q], given)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    torch.testing.assert_close(torch.random.get_rng_state(), state, rtol=0, atol=0)
    torch.testing.assert_close(output_sensitivities(model, [Q], given), first, rtol=0, atol=0)


def test_a_model_without_any_gradient_is_told_apart_too() -> None:
    model, given = small(), batches()
    wanted = output_sensitivities(model, [Q, DOWN], given)
    model.requires_grad_(False)
    found = output_sensitivities(model, [Q, DOWN], given)
    torch.testing.assert_close(found, wanted)


def test_a_module_that_does_not_run_is_named() -> None:
    model = small()
    model.spare = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="output_sensitivities: spare did not run"):
        output_sensitivities(model, [Q, "spare"], batches(1))


def test_what_the_output_never_reads_goes_first() -> None:
    """Neurons that the second matrix ignores, though they answer loudest."""
    model, given = small(), batches(8)
    layer = model.bert.encoder.layer[1]
    with torch.no_grad():
        layer.intermediate.dense.weight[:32] *= 20
        layer.output.dense.weight[:, :32] = 0
    plan = Plan.uniform("tile", 0.5, targets=[UP])
    kept = {}
    for saliency in ("second-order", "reconstruction"):
        pruner = Pruner(
            model,
            plan,
            strength=0.0,
            saliency=saliency,  # type: ignore[arg-type]
            scope="global",
            calibration=given,
        )
        kept[saliency] = pruner.choose_masks()[UP]
    assert kept["second-order"].tolist() == [[False] * 2] * 2 + [[True] * 2] * 2
    assert kept["reconstruction"][:2].all()


def test_starts_and_ends_of_valid_tokens_are_the_output_of_a_reader() -> None:
    torch.manual_seed(0)
    model = BertForQuestionAnswering(small(labels=2).config).eval()
    given = batches(1)[0]
    out = model_output(model, given)
    assert out.shape == (int(given["attention_mask"].sum()), 2)
    with torch.no_grad():
        model.qa_outputs.weight[0] = 0  # ends alone
    found = output_sensitivities(model, [Q, DOWN], [given])
    assert all(bool(weights.any()) for weights in found.values())


def test_a_tensor_is_an_output_as_it_is() -> None:
    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = small()

        def forward(self, **batch: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.classifier(**batch).logits
            return logits

    given = batches()
    found = output_sensitivities(Logits().eval(), [f"classifier.{Q}"], given)
    torch.testing.assert_close(
        found[f"classifier.{Q}"], output_sensitivities(small(), [Q], given)[Q]
    )


@pytest.mark.parametrize("scope", ["matrix", "global"])
def test_a_model_whose_output_is_constant_is_refused(scope: Any) -> None:
    model = small()
    nn.init.zeros_(model.classifier.weight)
    before = {name: p.clone() for name, p in model.named_parameters()}
    plan = Plan.uniform("tile", 0.5)
    pruner = Pruner(
        model, plan, strength=0.0, saliency="second-order", scope=scope, calibration=batches()
    )
    with pytest.raises(ValueError, match="depends on none of 12 modules"):
        pruner.prune()
    plan = Plan.uniform("tile", 0.0).with_structure(heads=0.5)
    with pytest.raises(ValueError, match="depends on none of 2 modules"):
        prune_structure(model, plan, batches(), scope=scope)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0)


def test_weights_that_are_nan_are_named_by_the_layer() -> None:
    model = small()
    with torch.no_grad():
        model.get_submodule(UP).weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"the gradient at .* holds NaN or infinity"):
        output_sensitivities(model, [Q, UP], batches())
