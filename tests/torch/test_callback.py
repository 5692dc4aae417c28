"""PruningCallback inside a real Trainer."""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from spatile.torch import Plan, PruningCallback, Stages, last_checkpoint

STAGES = Stages(dense=1, reweighted=1, retrain=1)


def pruning(sparsity: float = 0.5, stages: Stages = STAGES, **options: Any) -> PruningCallback:
    return PruningCallback(Plan.uniform("tile", sparsity), stages=stages, **options)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same_weights(model: Any, expected: dict[str, torch.Tensor]) -> None:
    for name, p in model.named_parameters():
        assert torch.equal(p, expected[name]), name


class Watch(transformers.TrainerCallback):
    """Records weights, gradients and norms around the optimizer's step."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.before: list[torch.Tensor] = []
        self.after: list[torch.Tensor] = []
        self.grads: list[torch.Tensor] = []

    def _parameter(self, model: Any) -> Any:
        return dict(model.named_parameters())[self.name]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parameter = self._parameter(kwargs["model"])
        self.before.append(parameter.detach().clone())
        self.grads.append(parameter.grad.detach().clone())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.after.append(self._parameter(kwargs["model"]).detach().clone())


def test_four_stages_end_to_end(make_bert: Any, train: Any) -> None:
    callback = pruning(0.5)
    model = make_bert()
    embeddings = model.bert.embeddings.word_embeddings.weight.detach().clone()
    train(model, callback)
    assert callback.stage_steps.dense_end == 6
    assert callback.stage_steps.reweighted_end == 12
    assert len(callback.masks) == 12
    for m in callback.pruner.matrices:
        assert int((~callback.masks[m.name]).sum()) == callback.masks[m.name].numel() // 2
        norms = callback.pruner.norms()[m.name]
        assert (norms[~callback.masks[m.name]] == 0).all()
        assert (norms[callback.masks[m.name]] > 0).all()
    trained = model.bert.embeddings.word_embeddings.weight
    assert not torch.equal(trained, embeddings)
    assert (trained != 0).float().mean() > 0.9
    assert (model.classifier.weight != 0).all()
    assert (model.bert.pooler.dense.weight != 0).all()


def test_history_tells_what_happened(make_bert: Any, train: Any) -> None:
    callback = pruning(0.5, shrink=0.9)
    train(make_bert(), callback)
    history = json.loads(json.dumps(callback.history))
    assert [r["step"] for r in history["reweights"]] == [6, 8, 10]
    assert list(history["norms"]) == [
        "start",
        "reweighted_start",
        "before_prune",
        "after_prune",
        "end",
    ]
    groups = sum(mask.numel() for mask in callback.masks.values())
    for moment in history["norms"].values():
        counted = sum(sum(c) for c in moment["counts"].values()) + sum(moment["zeros"].values())
        assert counted == groups
    assert history["norms"]["after_prune"]["zeros"] == {"tile:16x16": groups // 2}
    assert history["pruned"]["all"] == 0.5
    reweighted = history["reweighted"]
    assert reweighted["acted"] is True
    assert reweighted["norm_ratio"]["pruned"] < reweighted["norm_ratio"]["kept"]
    assert reweighted["energy_removed"] < 0.8 * reweighted["energy_removed_without"]
    assert 0.5 < reweighted["mask_agreement"]["all"] <= 1.0


@pytest.mark.parametrize("method", ["proximal", "gradient"])
def test_a_stage_that_did_nothing_is_told_apart(make_bert: Any, train: Any, method: str) -> None:
    callback = pruning(0.5, strength=1e-4, method=method)
    train(make_bert(), callback, learning_rate=5e-5)
    assert callback.history["reweighted"]["acted"] is False
    assert callback.history["reweighted"]["mask_agreement"]["all"] > 0.9


def test_accumulation_equals_one_big_batch(make_bert: Any, train: Any) -> None:
    stages = Stages(dense=2, reweighted=6, retrain=4, unit="steps")
    results = []
    for batch, accumulate in ((8, 1), (2, 4)):
        model = make_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        # Trainer divides the loss by the number of accumulated batches only where a model says
        # that it doesn't do so itself. BERT's classifier doesn't, but lets Trainer believe it.
        model.accepts_loss_kwargs = False
        callback = pruning(0.5, stages, strength=5.0)
        train(
            model,
            callback,
            max_steps=12,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulate,
            optim="sgd",
            learning_rate=0.01,
        )
        results.append((callback, weights(model)))
    (one, big), (four, small) = results
    assert one.stage_steps == four.stage_steps
    for name in big:
        torch.testing.assert_close(small[name], big[name], rtol=1e-4, atol=1e-6)
    for name, mask in one.masks.items():
        assert torch.equal(mask, four.masks[name])


def test_penalty_gradient_comes_after_clipping(make_bert: Any, train: Any) -> None:
    name = "bert.encoder.layer.0.output.dense.weight"
    strength = 1e3
    watch = Watch(name)
    callback = pruning(
        0.5, Stages(1, 4, 1, unit="steps", ramp=0.0), strength=strength, method="gradient"
    )
    train(make_bert(), [callback, watch], max_steps=6, max_grad_norm=1e-3)
    # What is left of a clipped gradient is at most 1e-3 long; the penalty's is 1e3·β a tile.
    assert watch.grads[0].norm() <= 1.001e-3
    for step in (1, 2, 3, 4):
        assert watch.grads[step].norm() > 100.0
    assert watch.grads[5].norm() <= 1.001e-3


def test_proximal_step_is_the_formula(make_bert: Any, train: Any) -> None:
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    lr, strength = 0.02, 3.0
    watch = Watch(name)
    callback = pruning(
        0.5, Stages(0, 2, 1, unit="steps", ramp=0.0, reweight_every=2), strength=strength
    )
    train(
        make_bert(),
        [callback, watch],
        max_steps=3,
        optim="sgd",
        learning_rate=lr,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
    )

    def tiles(w: torch.Tensor) -> torch.Tensor:
        return w.reshape(6, 16, 4, 16).double()

    def norms(w: torch.Tensor) -> torch.Tensor:
        return tiles(w).square().sum((1, 3), keepdim=True).sqrt()

    beta = 1 / (norms(watch.before[0]) + 1e-3)
    moved = watch.before[0] - lr * watch.grads[0]
    factor = (1 - lr * strength * beta / norms(moved)).clamp_min(0)
    expected = (tiles(moved) * factor).reshape(96, 64).float()
    assert (factor < 1).all()
    assert (factor > 0).any()
    torch.testing.assert_close(watch.after[0], expected, rtol=1e-4, atol=1e-6)


def test_lambda_is_ramped_and_off_outside_its_stage(make_bert: Any, train: Any) -> None:
    seen: list[float] = []

    class Strengths(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            seen.append(callback.pruner.strength)

    callback = pruning(0.5, Stages(2, 4, 2, unit="steps", ramp=0.5), strength=8.0)
    train(make_bert(), [callback, Strengths()], max_steps=8)
    assert seen == [0, 0, 4, 8, 8, 8, 0, 0]


def test_attention_aware_plan_and_row_pattern(make_bert: Any, bert_config: Any, train: Any) -> None:
    plan = Plan.attention_aware(bert_config, 0.75)
    callback = PruningCallback(plan, stages=STAGES, scope="row-balanced")
    model = make_bert()
    train(model, callback)
    value = model.bert.encoder.layer[0].attention.self.value.weight
    assert int((value.abs().sum(1) == 0).sum()) == 48
    kept = callback.masks["bert.encoder.layer.0.attention.self.query"].sum(1)
    assert kept.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("killed_at", [4, 6, 9, 12, 15])
def test_resume_repeats_the_uninterrupted_run(
    make_bert: Any, train: Any, tmp_path: Path, killed_at: int
) -> None:
    class Kill(transformers.TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == killed_at:
                control.should_training_stop = True

    saving = {"save_strategy": "steps", "save_steps": 1}
    attention = "spatile" if killed_at == 9 else "sdpa"
    whole = pruning(0.5)
    uninterrupted = make_bert(attention=attention)
    train(uninterrupted, whole, name="whole")
    expected = weights(uninterrupted)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(make_bert(attention=attention), [pruning(0.5), Kill()], name="cut", **saving)
    checkpoint = last_checkpoint(tmp_path / "cut")
    assert checkpoint is not None
    assert checkpoint.endswith(f"-{killed_at}")
    # A copy elsewhere under another name, and the run's own folder gone.
    copy = tmp_path / "elsewhere" / "my copy"
    shutil.copytree(checkpoint, copy)
    shutil.rmtree(tmp_path / "cut")

    resumed, callback = make_bert(seed=9, attention=attention), pruning(0.5)
    train(resumed, callback, name="cut", resume=str(copy), **saving)
    assert_same_weights(resumed, expected)
    for name, mask in whole.masks.items():
        assert torch.equal(callback.masks[name], mask)
    assert callback.history == whole.history


def test_resume_refuses_a_checkpoint_without_its_state(
    make_bert: Any, train: Any, tmp_path: Path
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 3}
    train(make_bert(), pruning(), **saving)
    folder = tmp_path / "run" / "checkpoint-9"
    (folder / "spatile_pruning.json").unlink()
    with pytest.raises(ValueError, match="no pruning state for step 9"):
        train(make_bert(), pruning(), resume=str(folder), **saving)
    other = tmp_path / "run" / "checkpoint-12"
    with pytest.raises(ValueError, match="saved plan"):
        train(make_bert(), pruning(0.25), resume=str(other), **saving)
    with pytest.raises(ValueError, match="saved strength"):
        train(make_bert(), pruning(strength=123.0), resume=str(other), **saving)
    changed = Stages(dense=1, reweighted=0.5, retrain=1.5)
    with pytest.raises(ValueError, match="reweighted_end"):
        train(make_bert(), pruning(stages=changed), resume=str(other), **saving)


def test_state_of_other_weights_is_not_taken(make_bert: Any, train: Any, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 9}
    train(make_bert(), pruning(), name="a", **saving)
    train(make_bert(seed=5), pruning(), name="b", **saving)
    mine, theirs = (tmp_path / name / "checkpoint-9" for name in ("a", "b"))
    for name in ("spatile_pruning.json", "spatile_pruning.safetensors"):
        shutil.copy(theirs / name, mine / name)
    with pytest.raises(ValueError, match="other weights"):
        train(make_bert(), pruning(), name="a", resume=str(mine), **saving)


def test_last_checkpoint_passes_over_unfinished_ones(
    make_bert: Any, train: Any, tmp_path: Path
) -> None:
    train(make_bert(), pruning(), save_strategy="steps", save_steps=6)
    root = tmp_path / "run"
    assert last_checkpoint(root) == str(root / "checkpoint-18")
    (root / "checkpoint-18" / "spatile_pruning.json").unlink()
    assert last_checkpoint(root) == str(root / "checkpoint-12")
    tensors = root / "checkpoint-12" / "spatile_pruning.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-5])
    assert last_checkpoint(root) == str(root / "checkpoint-6")
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint_whole(
    make_bert: Any, train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fill(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 9:
                monkeypatch.setattr(os, "fsync", full)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left.*checkpoint-9.*spatile_pruning"):
        train(make_bert(), [pruning(), Fill()], save_strategy="steps", save_steps=3)
    monkeypatch.undo()
    assert last_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-6")
    assert not list((tmp_path / "run" / "checkpoint-9").glob("*spatile_pruning*"))


def test_best_model_is_never_one_from_before_the_pruning(
    make_bert: Any, train: Any, tmp_path: Path
) -> None:
    scores = iter([0.99, 0.98, 0.3, 0.5, 0.4, 0.2])

    class Score(transformers.TrainerCallback):
        """Puts planned scores in the metrics: the dense model is by far the best."""

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            kwargs["metrics"]["eval_score"] = next(scores)

    callback = pruning(0.5, evaluate_when_pruned=True)
    trainer = train(
        make_bert(),
        [callback, Score()],
        save_strategy="steps",
        save_steps=3,
        eval_strategy="steps",
        eval_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
    )
    # Evaluations at steps 3, 6, 9 (dense and reweighted: .99, .98, .3), 12 (pruned: .5), 15, 18.
    assert trainer.state.best_metric == 0.5
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-12")
    for m in callback.pruner.matrices:
        assert (callback.pruner.norms()[m.name][~callback.masks[m.name]] == 0).all()


def test_loading_unpruned_weights_at_the_end_is_noticed(make_bert: Any, train: Any) -> None:
    class Undo(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 18:
                kwargs["model"].load_state_dict(make_bert(seed=4).state_dict())

    with pytest.raises(RuntimeError, match="not zero at the end"):
        train(make_bert(), [pruning(), Undo()])


def test_training_that_ends_before_the_pruning_warns(make_bert: Any, train: Any) -> None:
    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 5

    with pytest.warns(UserWarning, match="before the last pruning at step 12"):
        train(make_bert(), [pruning(), Stop()])


def test_bf16_autocast(make_bert: Any, train: Any) -> None:
    model = make_bert(attention="spatile")
    callback = pruning(0.5, shrink=0.9)
    train(model, callback, bf16=True)
    assert callback.history["reweighted"]["acted"] is True
    for m in callback.pruner.matrices:
        assert callback.pruner.weight(m).dtype == torch.float32
        assert (callback.pruner.norms()[m.name][~callback.masks[m.name]] == 0).all()


def test_stages_must_fit_the_run(make_bert: Any, train: Any) -> None:
    with pytest.raises(ValueError, match="pruning is at step 30, but training ends at 18"):
        train(make_bert(), pruning(stages=Stages(dense=1, reweighted=4)))
    with pytest.raises(ValueError, match="sum to 36 steps, expected the run's 18"):
        train(make_bert(), pruning(stages=Stages(dense=1, reweighted=1, retrain=4)))


def test_stages_may_be_empty(make_bert: Any, train: Any) -> None:
    callback = pruning(0.5, Stages(dense=0, reweighted=0))
    train(make_bert(), callback, num_train_epochs=1)
    assert callback.history["pruned"]["all"] == 0.5
    assert "reweighted" not in callback.history


def test_max_steps_with_epoch_stages(make_bert: Any, train: Any) -> None:
    callback = pruning(0.5, Stages(dense=0.5, reweighted=0.5))
    train(make_bert(), callback, max_steps=10)
    assert (callback.stage_steps.dense_end, callback.stage_steps.reweighted_end) == (3, 6)


def test_a_plan_for_another_model_stops_before_training(make_bert: Any, train: Any) -> None:
    callback = PruningCallback(
        Plan.uniform("tile", 0.5, targets=["decoder.layers.0"]), stages=STAGES
    )
    with pytest.raises(ValueError, match=r"decoder\.layers\.0.*the model has bert\.embeddings"):
        train(make_bert(), callback)


@pytest.mark.parametrize(
    "options",
    [{"strength": -1.0}, {"strength": "much"}, {"shrink": 0.0}, {"strength": float("nan")}],
)
def test_bad_arguments(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="PruningCallback"):
        pruning(**options)
