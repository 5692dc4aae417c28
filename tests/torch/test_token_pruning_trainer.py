"""Token and head pruning as callbacks of a real Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from spatile.inference import Encoder
from spatile.sparsity import Plan, Schedule
from spatile.torch import HeadPruning, PruningCallback, Stages, TokenPruning

TOKENS, HEADS = Schedule.per_layer([1, 0.4]), Schedule.per_layer([1, 0.5])
# The model has 2 layers, rows have 12 tokens, an epoch has 6 steps.


class Watch(transformers.TrainerCallback):
    """What the second layer worked on in each step and evaluation."""

    def __init__(self, pruning: Any) -> None:
        self.pruning = pruning
        self.steps: list[int] = []
        self.evaluations: list[int] = []
        self.best: list[Any] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(int(self.pruning.kept.counts[1, 0]))
        self.best.append(state.best_metric)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.evaluations.append(int(self.pruning.kept.counts[1, 0]))


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_the_schedule_comes_on_gradually(make_bert: Any, train: Any) -> None:
    tokens = TokenPruning(TOKENS, delay=0.5, gradual=1)
    heads = HeadPruning(HEADS, delay=0.5, gradual=1)
    watch, model = Watch(tokens), make_bert()
    trainer = train(model, [tokens, heads, watch], eval_strategy="epoch")
    # 12 tokens fall to 5 over 6 steps from the 4th on.
    assert watch.steps == [12, 12, 12, 12, 11, 10, 8, 7, 6] + [5] * 9
    assert watch.evaluations == [8, 5, 5], "an evaluation has the progress of its moment"
    assert tokens.progress == heads.progress == 1.0
    assert tokens.kept.heads.sum(axis=2)[1, 0] == 2
    trainer.evaluate()
    assert watch.evaluations[-1] == 5, "it stays on the trained model"
    tokens.detach()
    heads.detach()


@pytest.mark.parametrize(("delay", "expected"), [(0, [5, 5, 5]), (2, [12, 12, 5])])
def test_without_a_length_it_is_whole_at_once(
    make_bert: Any, train: Any, delay: int, expected: list[int]
) -> None:
    tokens = TokenPruning(TOKENS, delay=delay, unit="steps")
    watch = Watch(tokens)
    train(make_bert(), [tokens, watch], max_steps=3)
    assert watch.steps == expected


def test_the_trained_model_is_what_the_engine_runs(
    make_bert: Any, train: Any, rows: Any, tmp_path: Path
) -> None:
    """Tiles, tokens and heads in one run."""
    plan = Plan.uniform("tile", 0.5)
    stages = Stages(dense=1, reweighted=0, retrain=2, prunings=3, gradual=1)
    tokens = TokenPruning(TOKENS, delay=1, gradual=1)
    heads = HeadPruning(HEADS, delay=1, gradual=1)
    pruning = PruningCallback(
        plan, stages=stages, saliency="second-order", calibration=24, sparse=True
    )
    model = make_bert()
    train(model, [pruning, tokens, heads])
    model.save_pretrained(tmp_path)
    encoder = Encoder.load(tmp_path, plan=plan, tokens=TOKENS, heads=HEADS)
    assert encoder.summary().sparsity > 0.45
    ids = torch.stack([row["input_ids"] for row in rows])
    model.eval()
    with torch.no_grad():
        hidden = model.bert(ids).last_hidden_state[:, 0]
    run = encoder.run(ids.tolist(), first_only=True)
    torch.testing.assert_close(hidden, torch.from_numpy(run.hidden), atol=2e-5, rtol=0)
    assert (tokens.kept.heads == run.kept.heads).all()


@pytest.mark.parametrize("stop", [4, 8, 14])
def test_resuming_needs_no_flag_and_changes_no_bit(
    make_bert: Any, train: Any, tmp_path: Path, stop: int
) -> None:
    def callbacks() -> list[Any]:
        return [
            TokenPruning(TOKENS, gradual=1, delay=1),
            HeadPruning(HEADS, gradual=7, delay=3, unit="steps"),
        ]

    how = {"save_strategy": "steps", "save_steps": stop}
    model = make_bert()
    train(model, callbacks(), name="whole", **how)
    expected = weights(model)
    resumed = make_bert(seed=9)
    again = callbacks()
    train(resumed, again, resume=str(tmp_path / "whole" / f"checkpoint-{stop}"), name="again")
    for name, p in resumed.named_parameters():
        assert torch.equal(p, expected[name]), name
    assert again[0].progress == 1.0


def test_only_models_pruned_to_the_end_compete(make_bert: Any, train: Any) -> None:
    tokens = TokenPruning(TOKENS, gradual=2)
    watch = Watch(tokens)
    train(
        make_bert(), [tokens, watch], eval_strategy="steps", eval_steps=4, save_strategy="steps",
        save_steps=4, load_best_model_at_end=True, metric_for_best_model="loss",
    )  # fmt: skip
    found = [best is not None for best in watch.best]
    assert found == [False] * 4 + [True] * 7 + [False] + [True] * 6


def test_accumulation_and_bfloat16(make_bert: Any, train: Any) -> None:
    """A step counts once, however many batches it takes."""
    tokens = TokenPruning(TOKENS, gradual=3, unit="steps")
    watch = Watch(tokens)
    model = make_bert()
    train(
        model, [tokens, HeadPruning(HEADS), watch], gradient_accumulation_steps=2, bf16=True,
        num_train_epochs=2,
    )  # fmt: skip
    assert watch.steps == [12, 10, 7, 5, 5, 5]
    assert all(p.isfinite().all() for p in model.parameters())


def test_one_callback_serves_one_model_after_another(make_bert: Any, train: Any) -> None:
    tokens = TokenPruning(TOKENS)
    first, second = make_bert(), make_bert(seed=1)
    train(first, tokens, max_steps=1)
    train(second, tokens, max_steps=1)
    assert not any(m._forward_pre_hooks for m in first.modules())
    assert tokens.kept.counts[1, 0] == 5


def test_a_length_beyond_the_run_is_refused(make_bert: Any, train: Any) -> None:
    with pytest.raises(ValueError, match=r"TokenPruning: delay and gradual end at step 24, but tr"):
        train(make_bert(), TokenPruning(TOKENS, gradual=4))
    with pytest.raises(NotImplementedError, match="gradient checkpointing is on, expected off"):
        train(make_bert(), HeadPruning(HEADS), gradient_checkpointing=True)
