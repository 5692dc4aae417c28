"""PruningCallback in a Trainer whose model is on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from spatile.sparsity import Schedule
from spatile.torch import Plan, PruningCallback, SparseLinear, Stages, TokenPruning

STAGES = Stages(dense=1, reweighted=1, retrain=1)
PLAN = Plan.uniform("tile", 0.5)


class Watch(transformers.TrainerCallback):
    """The losses, and the sparse layers in each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.sparse: list[int] = []
        self.devices: set[str] = set()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        self.sparse.append(sum(isinstance(m, SparseLinear) for m in model.modules()))
        self.devices |= {p.device.type for p in model.parameters()}

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if "loss" in kwargs["logs"]:
            self.losses.append(kwargs["logs"]["loss"])


def test_a_run_is_the_cpus(cuda: str, make_bert: Any, trainer: Any) -> None:
    runs = []
    for device in (cuda, "cpu"):
        model = make_bert("spatile" if device == cuda else "eager")
        pruning, watch = PruningCallback(PLAN, stages=STAGES, sparse=True), Watch()
        # The norm that gradients are clipped by is another where pruned weights have none.
        trainer(device, model, pruning, watch, max_grad_norm=0.0)
        assert watch.devices == {device}
        assert watch.sparse == [0] * 8 + [12] * 4
        runs.append((watch.losses, pruning.masks, model))
    (losses, masks, model), (expected, same, twin) = runs
    assert losses == pytest.approx(expected, rel=1e-3)
    for name, mask in masks.items():
        assert mask.device.type == "cuda"
        assert torch.equal(mask.cpu(), same[name])
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.cpu(), q, rtol=1e-2, atol=1e-3, msg=name)
    assert not any(isinstance(m, SparseLinear) for m in model.modules())


def test_auto_leaves_layers_dense(cuda: str, make_bert: Any, trainer: Any) -> None:
    """On the CPU they would all be sparse; on a GPU nobody has measured when that pays."""
    watch = Watch()
    pruning = PruningCallback(PLAN, stages=Stages(dense=1, reweighted=0, retrain=1, unit="steps"))
    trainer(cuda, make_bert(), pruning, watch, max_steps=2)
    assert watch.sparse == [0, 0]
    assert pruning.history["sparse"] == []
    assert pruning.masks


def test_second_order_tokens_and_a_resumed_run(cuda: str, make_bert: Any, trainer: Any) -> None:
    def fresh() -> tuple[Any, PruningCallback, Watch, TokenPruning]:
        pruning = PruningCallback(
            PLAN, stages=STAGES, saliency="second-order", calibration=8, sparse=True
        )
        tokens = TokenPruning(Schedule.per_layer([1, 0.5]))
        return make_bert(), pruning, Watch(), tokens

    model, pruning, watch, tokens = fresh()
    made = trainer(cuda, model, pruning, watch, tokens, save_strategy="steps", save_steps=10)
    errors = pruning.history["prunings"][0]["relative_errors"]
    assert len(errors) == 12
    assert all(e > 0 for e in errors.values())

    again, resumed, later, tokens = fresh()
    checkpoint = f"{made.args.output_dir}/checkpoint-10"
    trainer(cuda, again, resumed, later, tokens, resume=checkpoint)
    assert later.sparse == [12] * 2
    for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        assert q.device.type == "cuda"
        torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-6, msg=name)
