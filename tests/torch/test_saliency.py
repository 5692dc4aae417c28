"""Which groups a Pruner drops: by gradients, by second order, by and by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from spatile import reference
from spatile.torch import Plan, Pruner, PruningCallback, Stages, last_checkpoint
from spatile.torch.calibration import LayerWalk
from spatile.torch.sensitivity import output_sensitivities

TILE = Plan.uniform("tile", 0.5)


def batches(count: int = 4, rows: int = 6, tokens: int = 14) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    found = []
    for _ in range(count):
        ids = torch.randint(4, 40, (rows, tokens), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, tokens // 2 :] = 0
        found.append({"input_ids": ids * mask, "attention_mask": mask})
    return found


def gradients(model: Any, batch: dict[str, torch.Tensor]) -> None:
    model(**batch, labels=torch.arange(len(batch["input_ids"])) % 2).loss.backward()


def group_sums(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(0, (-1, 16)).unflatten(2, (-1, 16)).sum(dim=(1, 3))


@pytest.mark.parametrize("kind", ["movement", "taylor"])
def test_gradient_scores_rank_as_their_formulas_say(make_bert: Any, kind: Any) -> None:
    model = make_bert()
    name = "bert.encoder.layer.1.intermediate.dense"
    plan = Plan.uniform("tile", 0.5, targets=[name])
    pruner = Pruner(model, plan, strength=0.0, saliency=kind)
    weight = model.get_submodule(name).weight
    expected = torch.zeros(6, 4, dtype=torch.float64)
    for batch in batches(3):
        model.zero_grad()
        gradients(model, batch)
        sums = group_sums((weight.detach() * weight.grad).double())
        expected += -sums if kind == "movement" else sums.square()
        pruner.before_step()
    mask = pruner.prune()[name]
    assert int(mask.sum()) == 12
    assert expected[mask].min() > expected[~mask].max()
    tiles = weight.detach().unflatten(0, (-1, 16)).unflatten(2, (-1, 16)).transpose(1, 2)
    assert not tiles[~mask].any()


def test_gradient_scores_start_anew_and_what_is_pruned_stays_so(make_bert: Any) -> None:
    model = make_bert()
    pruner = Pruner(model, TILE, strength=0.0, saliency="movement", scope="global")
    with pytest.raises(ValueError, match="movement has seen no gradient of"):
        pruner.prune()
    gradients(model, batches(1)[0])
    pruner.before_step()
    half = pruner.prune(fraction=0.5)
    with pytest.raises(ValueError, match="has seen no gradient"):
        pruner.prune()
    model.zero_grad()
    gradients(model, batches(2)[1])
    pruner.before_step()
    whole = pruner.prune()
    total = sum(m.numel() for m in whole.values())
    assert [sum(int(m.sum()) for m in masks.values()) for masks in (half, whole)] == [
        round(total * 0.75),
        total // 2,
    ]
    assert not any(bool((whole[name] & ~half[name]).any()) for name in whole)


def test_layer_walk_gives_each_matrix_its_inputs(make_bert: Any) -> None:
    model, given = make_bert().train(), batches(2)
    names = [f"bert.encoder.layer.1.{part}" for part in ("attention.self.key", "output.dense")]
    expected = {}
    with torch.no_grad():
        for name in names:
            seen: list[torch.Tensor] = []
            hook = model.get_submodule(name).register_forward_pre_hook(
                lambda module, args, seen=seen: seen.append(args[0])
            )
            model.eval()
            for batch in given:
                model(**batch)
            hook.remove()
            rows = torch.cat(
                [x[b["attention_mask"].bool()] for x, b in zip(seen, given, strict=True)]
            ).double()
            expected[name] = rows.T @ rows
    model.train()
    with LayerWalk(model, given) as walk:
        walk.advance()
        assert not model.training
        grams = walk.grams(names)
        assert walk.inputs[0].shape == (int(given[0]["attention_mask"].sum()), 64)
    assert model.training
    for name in names:
        torch.testing.assert_close(grams[name], expected[name], rtol=1e-4, atol=1e-3)


def test_autocast_keeps_no_copies_of_weights_that_were_changed(make_bert: Any) -> None:
    """Layers see what the pruned ones before them give, and so does whoever runs the model next."""
    weights, outputs = [], []
    for cached in (True, False):
        model, given = make_bert().eval(), batches(8)
        pruner = Pruner(model, TILE, strength=0.0, saliency="reconstruction", calibration=given)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached), torch.no_grad():
            pruner.prune()
            outputs.append(model(**given[0]).logits)
        weights.append({n: p.detach() for n, p in model.named_parameters()})
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)


@pytest.mark.parametrize("saliency", ["second-order", "reconstruction"])
@pytest.mark.parametrize("scope", ["matrix", "global"])
def test_second_order_is_the_references_layer_by_layer(
    make_bert: Any, scope: Any, saliency: Any
) -> None:
    model, given = make_bert(), batches(8)
    before = {n: p.detach().double().numpy().copy() for n, p in model.named_parameters()}
    first = "bert.encoder.layer.0.attention.self.query"
    with LayerWalk(model, given) as walk:
        gram = walk.grams([first])[first].numpy()
    weights = None
    if saliency == "second-order":
        weights = output_sensitivities(model, [first], given)[first].numpy()
    pruner = Pruner(model, TILE, strength=0.0, saliency=saliency, scope=scope, calibration=given)
    masks = pruner.prune()
    kept = sum(int(m.sum()) for m in masks.values())
    assert kept * 2 == sum(m.numel() for m in masks.values())
    if scope == "matrix":
        assert all(int(m.sum()) * 2 == m.numel() for m in masks.values())
    # Nothing that the first layer's Q sees has changed, so it is what one matrix alone would be.
    weight = before[f"{first}.weight"]
    found = reference.second_order_apply(weight, gram, masks[first].numpy(), pattern="tile")
    torch.testing.assert_close(
        model.get_submodule(first).weight.detach().double(),
        torch.from_numpy(found.w),
        rtol=1e-3,
        atol=1e-5,
    )
    if scope == "matrix":
        removals = reference.second_order_removals(weight, gram, pattern="tile", row_weight=weights)
        wanted = reference.second_order_mask(removals, sparsity=0.5)
        assert masks[first].numpy().tolist() == wanted.tolist()
    assert set(pruner.relative_errors) == set(masks)
    # A matrix may go as a whole, and all of its output with it.
    assert all(0 <= e <= 1 + 1e-6 for e in pruner.relative_errors.values())
    pruner.apply_masks()


def test_second_order_keeps_outputs_closer_than_norms_do(make_bert: Any) -> None:
    given = batches(16)
    with torch.no_grad():
        target = [make_bert().eval()(**b).logits for b in given]
        error = {}
        for saliency in ("magnitude", "second-order"):
            model = make_bert().eval()
            Pruner(
                model, TILE, strength=0.0, saliency=saliency, calibration=lambda: iter(given)
            ).prune()
            error[saliency] = sum(
                float((model(**b).logits - t).square().sum())
                for b, t in zip(given, target, strict=True)
            )
    assert error["second-order"] < 0.7 * error["magnitude"]


def test_second_order_prunes_on_from_what_is_pruned(make_bert: Any) -> None:
    pruner = Pruner(
        make_bert(),
        TILE,
        strength=0.0,
        saliency="second-order",
        scope="global",
        calibration=batches(8),
    )
    half, whole = pruner.prune(fraction=0.5), pruner.prune()
    assert not any(bool((whole[name] & ~half[name]).any()) for name in whole)


def test_bad_arguments(make_bert: Any) -> None:
    model = make_bert()

    def pruner(**options: Any) -> Pruner:
        return Pruner(model, TILE, strength=0.0, **options)

    with pytest.raises(ValueError, match="saliency is 'size', expected one of 'magnitude'"):
        pruner(saliency="size")
    with pytest.raises(ValueError, match="calibration is None, expected batches"):
        pruner(saliency="second-order")
    with pytest.raises(ValueError, match="scope is 'row-balanced', expected 'matrix' or 'global'"):
        pruner(saliency="second-order", calibration=batches(1), scope="row-balanced")
    with pytest.raises(ValueError, match="damping is 0"):
        pruner(damping=0)
    with pytest.raises(ValueError, match=r"fraction is 0\.0"):
        pruner().prune(fraction=0.0)
    with pytest.raises(ValueError, match="batches is empty"):
        pruner(saliency="second-order", calibration=[]).prune()
    with pytest.raises(ValueError, match="model is a Linear without"):
        LayerWalk(torch.nn.Linear(2, 2), batches(1))
    with (
        LayerWalk(model, batches(1)) as walk,
        pytest.raises(ValueError, match=r"layer\.1\.output\.dense is asked for at"),
    ):
        walk.grams(["bert.encoder.layer.1.output.dense"])
    assert model.training


def test_calibration_leaves_the_model_as_it_was_when_it_fails(make_bert: Any) -> None:
    model = make_bert().train()
    with pytest.raises(IndexError), LayerWalk(model, [{"input_ids": torch.tensor([[99]])}]):
        pass
    assert model.training
    assert torch.is_grad_enabled()
    model(**batches(1)[0])  # no hook is left that would stop it


@pytest.mark.parametrize("saliency", ["magnitude", "movement", "taylor", "second-order"])
def test_gradual_pruning_in_a_trainer(make_bert: Any, train: Any, saliency: Any) -> None:
    stages = Stages(dense=1, reweighted=0, retrain=2, prunings=3, gradual=1)
    callback = PruningCallback(
        Plan.uniform("tile", 0.8), stages=stages, saliency=saliency, scope="global", calibration=16
    )
    train(make_bert(), callback)
    history = callback.history["prunings"]
    assert [p["step"] for p in history] == [6, 9, 12]
    wanted = [0.8 * (1 - (1 - i / 3) ** 3) for i in (1, 2, 3)]
    # Movement and Taylor need a step's gradient before the first pruning; the dense stage has some.
    assert [p["pruned"] for p in history] == pytest.approx(wanted, abs=0.01)
    assert bool(history[0]["relative_errors"]) == (saliency == "second-order")
    assert callback.history["norms"]["end"]["zeros"]["tile:16x16"] > 0


@pytest.mark.parametrize("saliency", ["taylor", "second-order"])
def test_resumed_between_prunings_is_the_same_bits(
    make_bert: Any, train: Any, saliency: Any
) -> None:
    stages = Stages(dense=1, reweighted=0, retrain=2, prunings=3, gradual=1)

    def callback() -> PruningCallback:
        return PruningCallback(
            Plan.uniform("tile", 0.8), stages=stages, saliency=saliency, calibration=16
        )

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 10

    whole = make_bert()
    train(whole, callback(), name="whole")
    with pytest.warns(UserWarning, match="before the last pruning"):
        trainer = train(
            make_bert(), [callback(), Stop()], name="cut", save_strategy="steps", save_steps=5
        )
    resumed = make_bert(seed=7)
    train(resumed, callback(), name="cut", resume=last_checkpoint(trainer.args.output_dir))
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_data_that_cannot_be_indexed_is_refused(make_bert: Any) -> None:
    from spatile.torch.calibration import calibration_batches

    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter(())

    loader = torch.utils.data.DataLoader(Stream())
    with pytest.raises(ValueError, match="can't be indexed, expected calibration=batches"):
        calibration_batches(make_bert(), loader, rows=4, seed=0)


@pytest.mark.parametrize("known_lengths", [True, False])
def test_calibration_takes_rows_until_there_are_tokens_enough(
    make_bert: Any, known_lengths: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spatile.torch import calibration

    monkeypatch.setattr(calibration, "ENOUGH_TOKENS", 600)
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(3, 15, (400,), generator=generator).tolist()

    class Rows(list[torch.Tensor]):
        pass

    rows = Rows(torch.randint(4, 40, (n,), generator=generator) for n in lengths)
    if known_lengths:
        rows.lengths = lengths  # type: ignore[attr-defined]

    def collate(items: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        ids = torch.nn.utils.rnn.pad_sequence(items, batch_first=True)
        return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": ids[:, 0]}

    loader = torch.utils.data.DataLoader(rows, collate_fn=collate)  # type: ignore[arg-type]
    model = make_bert()
    found = calibration.calibration_batches(model, loader, rows=None, seed=0, batch_size=8)
    tokens = sum(int(b["attention_mask"].sum()) for b in found)
    assert 600 <= tokens < 600 + (15 if known_lengths else 8 * 15)
    assert all(set(b) == {"input_ids", "attention_mask"} for b in found)
    again = calibration.calibration_batches(model, loader, rows=None, seed=0, batch_size=8)
    assert all(
        torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(found, again, strict=True)
    )
    widths = [b["input_ids"].shape[1] for b in found]
    assert (widths == sorted(widths, reverse=True)) == known_lengths
    twenty = calibration.calibration_batches(model, loader, rows=20, seed=0, batch_size=8)
    assert sum(len(b["input_ids"]) for b in twenty) == 20


def test_gpt2_is_pruned_by_second_order_too() -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=32, pad_token_id=0
    )
    model = transformers.GPT2ForSequenceClassification(config)
    pruner = Pruner(
        model, TILE, strength=0.0, saliency="second-order", calibration=batches(4, tokens=10)
    )
    masks = pruner.prune()
    assert any(name.endswith("c_attn.key") for name in masks)
    assert all(0 <= e < 1 for e in pruner.relative_errors.values())
    for m in pruner.matrices:
        assert int(masks[m.name].sum()) * 2 == masks[m.name].numel()


def test_parts_that_were_in_evaluation_mode_stay_so(make_bert: Any) -> None:
    model = make_bert().train()
    model.bert.embeddings.eval()
    with LayerWalk(model, batches(1)):
        assert not any(m.training for m in model.modules())
    assert model.training
    assert not model.bert.embeddings.dropout.training


def test_batches_that_can_be_read_once_only_are_refused(make_bert: Any) -> None:
    with pytest.raises(ValueError, match="calibration can be read once only"):
        Pruner(
            make_bert(),
            TILE,
            strength=0.0,
            saliency="second-order",
            calibration=iter(batches(1)),  # type: ignore[arg-type]
        )


def test_what_the_callback_cannot_do_is_said_before_training(make_bert: Any, train: Any) -> None:
    plan = TILE.with_structure(heads=0.5)
    stages = Stages(dense=1, reweighted=0, retrain=2)
    with pytest.raises(ValueError, match="calibration is 0, expected batches"):
        PruningCallback(TILE, stages=stages, calibration=0)
    with pytest.raises(
        ValueError, match="'movement', expected 'second-order', 'reconstruction' or"
    ):
        PruningCallback(plan, stages=stages, saliency="movement")
    model = make_bert()
    before = model.bert.encoder.layer[0].output.dense.weight.detach().clone()
    callback = PruningCallback(
        TILE.with_structure(heads=0.5, target="encoder.layer.7"), stages=stages
    )
    with pytest.raises(ValueError, match=r"no layer matches 'encoder\.layer\.7'"):
        train(model, callback)
    assert torch.equal(model.bert.encoder.layer[0].output.dense.weight, before)


def test_where_nothing_is_to_go_nothing_is_looked_at(make_bert: Any) -> None:
    model = make_bert()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    looked = lambda: pytest.fail("calibration was read")  # noqa: E731
    plan = Plan.uniform("tile", 0.0)
    pruner = Pruner(model, plan, strength=0.0, saliency="second-order", calibration=looked)
    assert all(bool(mask.all()) for mask in pruner.prune().values())
    assert pruner.relative_errors == {}
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[n], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["movement", "taylor"])
def test_a_step_that_overflows_is_not_counted(make_bert: Any, kind: Any) -> None:
    """A GradScaler leaves it out; its gradients are infinite or NaN."""
    masks = []
    for overflow in (False, True):
        model = make_bert()
        pruner = Pruner(model, TILE, strength=0.0, saliency=kind)
        for i, batch in enumerate(batches(3)):
            model.zero_grad()
            gradients(model, batch)
            if overflow and i == 1:
                pruner.before_step()
                grad = pruner.parameter(pruner.matrices[0]).grad
                assert grad is not None
                grad[0, 0] = float("inf")
            pruner.before_step()
        masks.append(pruner.prune())
    # The second step was seen once in both: before it overflowed, and not after.
    for name, mask in masks[0].items():
        assert torch.equal(mask, masks[1][name])
