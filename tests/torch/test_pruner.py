"""The Pruner in plain loops."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import transformers

from spatile.torch import Plan, Pruner

NAME = "encoder.layer.0.intermediate.dense"


class Net(torch.nn.Module):
    """One prunable matrix (48, 32) under the name that BERT gives it, and a head."""

    def __init__(self, dtype: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = torch.nn.Module()
        self.encoder.layer = torch.nn.ModuleList([torch.nn.Module()])
        self.encoder.layer[0].intermediate = torch.nn.Module()
        self.encoder.layer[0].intermediate.dense = torch.nn.Linear(32, 48)
        self.classifier = torch.nn.Linear(48, 2)
        if dtype is not None:
            self.to(dtype)

    @property
    def dense(self) -> Any:
        return self.encoder.layer[0].intermediate.dense

    def forward(self, x: Any) -> Any:
        return self.classifier(torch.relu(self.dense(x)))


def loop(model: Any, pruner: Pruner, optimizer: Any, steps: int, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    dtype = model.dense.weight.dtype
    for _ in range(steps):
        x = torch.randn(16, 32, generator=generator)
        y = (x[:, 0] > 0).long()
        loss = torch.nn.functional.cross_entropy(model(x.to(dtype)).float(), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        pruner.before_step()
        optimizer.step()
        pruner.after_step()
        optimizer.zero_grad()


def median_norm(pruner: Pruner) -> float:
    return float(torch.cat([n.flatten() for n in pruner.norms().values()]).median())


def test_proximal_shrinks_under_adamw_and_gradient_hardly_does() -> None:
    fell = {}
    for method, strength in (("none", 0.0), ("proximal", 8.0), ("gradient", 1e-4)):
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        pruner = Pruner(
            model,
            Plan.uniform("tile", 0.5),
            strength=strength,
            method="proximal" if method == "none" else method,
            optimizer=optimizer,
        )
        pruner.reweight()
        before = median_norm(pruner)
        loop(model, pruner, optimizer, 200)
        fell[method] = median_norm(pruner) / before
    assert fell["proximal"] < 0.8 * fell["none"]
    assert abs(fell["gradient"] / fell["none"] - 1) < 0.05


@pytest.mark.parametrize("kind", ["sgd-momentum", "adamw"])
def test_pruned_weights_stay_exactly_zero(kind: str) -> None:
    model = Net()
    optimizer = (
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        if kind == "sgd-momentum"
        else torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    )
    pruner = Pruner(model, Plan.uniform("tile", 0.5), strength=0.0, optimizer=optimizer)
    loop(model, pruner, optimizer, 5)
    masks = pruner.prune()
    assert list(masks) == [NAME]
    assert masks[NAME].shape == (3, 2)
    kept_before = model.dense.weight.detach().clone()
    gone = kept_before == 0
    assert int(gone.sum()) == 3 * 256
    for _ in range(5):
        loop(model, pruner, optimizer, 1)
        assert (model.dense.weight[gone] == 0).all()
    assert not torch.equal(model.dense.weight, kept_before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_parameters_shrink_as_much_as_float32(dtype: Any) -> None:
    norms = {}
    for kind in (torch.float32, dtype):
        model = Net(kind)
        pruner = Pruner(model, Plan.uniform("tile", 0.5), strength=4.0)
        pruner.reweight()
        start = median_norm(pruner)
        for _ in range(500):
            pruner.after_step(lr=2e-4)  # one step is far below the rounding of bfloat16
        norms[kind] = median_norm(pruner) / start
        assert model.dense.weight.dtype == kind
    assert norms[torch.float32] < 0.95
    assert abs(norms[dtype] - norms[torch.float32]) < 0.02


def test_bf16_masks_hold() -> None:
    model = Net(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    pruner = Pruner(model, Plan.uniform("row", 0.5), strength=0.0, optimizer=optimizer)
    pruner.prune()
    loop(model, pruner, optimizer, 5)
    assert int((model.dense.weight.abs().sum(1) == 0).sum()) == 24


def test_grad_scaler_with_a_skipped_step() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(
        model, Plan.uniform("tile", 0.5), strength=0.5, method="gradient", optimizer=optimizer
    )
    pruner.reweight()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    reference = Net()
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)
    twin = Pruner(
        reference, Plan.uniform("tile", 0.5), strength=0.5, method="gradient", optimizer=plain
    )
    twin.reweight()
    x, y = torch.randn(16, 32), torch.randint(0, 2, (16,))
    for overflow in (False, True, False):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        scaler.scale(loss * (float("inf") if overflow else 1.0)).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        pruner.before_step()
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() >= scale:
            pruner.after_step()
        optimizer.zero_grad()
        if not overflow:
            torch.nn.functional.cross_entropy(reference(x), y).backward()
            torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
            twin.before_step()
            plain.step()
            twin.after_step()
            plain.zero_grad()
    torch.testing.assert_close(model.dense.weight, reference.dense.weight, rtol=1e-5, atol=1e-7)


def test_frozen_parameters_are_left_out_of_the_penalty() -> None:
    model = Net()
    model.dense.weight.requires_grad_(False)
    before = model.dense.weight.clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for method in ("proximal", "gradient"):
        pruner = Pruner(
            model, Plan.uniform("tile", 0.5), strength=1.0, method=method, optimizer=optimizer
        )
        loop(model, pruner, optimizer, 2)
    assert torch.equal(model.dense.weight, before)


def test_state_dict_goes_through_torch_save_and_repeats_the_run(tmp_path: Any) -> None:
    def fresh() -> tuple[Any, Any, Pruner]:
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        pruner = Pruner(model, Plan.uniform("tile", 0.5), strength=1.0, optimizer=optimizer)
        return model, optimizer, pruner

    model, optimizer, pruner = fresh()
    pruner.reweight()
    loop(model, pruner, optimizer, 3)
    saved = {"model": model.state_dict(), "pruner": pruner.state_dict()}
    torch.save(saved, tmp_path / "state.pt")
    loop(model, pruner, optimizer, 3, seed=2)
    pruner.prune()

    again, optimizer, resumed = fresh()
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(loaded["model"])
    resumed.load_state_dict(loaded["pruner"])
    assert resumed.strength == 1.0
    loop(again, resumed, optimizer, 3, seed=2)
    resumed.prune()
    assert torch.equal(again.dense.weight, model.dense.weight)


def test_state_of_another_plan_or_model_is_refused() -> None:
    pruner = Pruner(Net(), Plan.uniform("tile", 0.5), strength=1.0)
    pruner.reweight()
    state = pruner.state_dict()
    with pytest.raises(ValueError, match="saved plan"):
        Pruner(Net(), Plan.uniform("row", 0.5), strength=1.0).load_state_dict(state)
    with pytest.raises(ValueError, match="saved method"):
        Pruner(Net(), Plan.uniform("tile", 0.5), strength=1.0, method="gradient").load_state_dict(
            state
        )
    state["beta"] = {NAME: torch.ones(2, 2)}
    with pytest.raises(ValueError, match=r"is \(2, 2\), expected \(3, 2\)"):
        pruner.load_state_dict(state)
    state["beta"] = {"encoder.layer.7.output.dense": torch.ones(3, 2)}
    with pytest.raises(ValueError, match=r"encoder\.layer\.7"):
        pruner.load_state_dict(state)


def gpt2() -> Any:
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, n_positions=16)
    )


def test_gpt2_conv1d_and_fused_qkv() -> None:
    model = gpt2()
    plan = Plan.attention_aware(model.config, 0.5)
    pruner = Pruner(model, plan, strength=1.0)
    assert len(pruner.matrices) == 12
    block = model.transformer.h[0]
    before = block.attn.c_attn.weight.detach().clone()
    expected = before[:, 32:64].T.reshape(2, 16, 2, 16).square().sum((1, 3)).sqrt()
    torch.testing.assert_close(pruner.norms()["transformer.h.0.attn.c_attn.key"], expected)
    pruner.reweight()
    pruner.after_step(lr=1e-2)
    assert (block.attn.c_attn.weight.abs() < before.abs()).all()
    masks = pruner.prune()
    # W_V is row-pruned: whole outputs, which Conv1D holds as columns.
    value = block.attn.c_attn.weight[:, 64:]
    assert int((value.abs().sum(0) == 0).sum()) == 16
    query = block.attn.c_attn.weight[:, :32].T
    kept = masks["transformer.h.0.attn.c_attn.query"]
    for i in range(2):
        for j in range(2):
            tile = query[16 * i : 16 * i + 16, 16 * j : 16 * j + 16]
            assert bool((tile != 0).all()) == bool(kept[i, j])
            assert bool((tile == 0).all()) != bool(kept[i, j])
    assert (model.transformer.wte.weight != 0).all()
    fc = block.mlp.c_fc.weight
    assert fc.shape == (32, 128)
    assert int((fc == 0).sum()) == 32 * 128 // 2


def test_gpt2_gradient_method_reaches_the_right_third() -> None:
    model = gpt2()
    plan = Plan.uniform("tile", 0.5, targets=["h.1.attn.c_attn.key"])
    pruner = Pruner(model, plan, strength=2.0, method="gradient")
    pruner.before_step()
    weight = model.transformer.h[1].attn.c_attn.weight
    grad = weight.grad
    assert (grad[:, :32] == 0).all()
    assert (grad[:, 64:] == 0).all()
    tile, gradient = weight[:16, 32:48].detach(), grad[:16, 32:48]
    norm = tile.norm()
    torch.testing.assert_close(gradient, 2.0 * tile / norm / (norm + 1e-3), rtol=1e-4, atol=1e-6)


def test_scopes() -> None:
    model = gpt2()
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.mul_(1e-3)
    plan = Plan.uniform("tile", 0.25)
    ranked = Pruner(model, plan, strength=0.0, scope="global").choose_masks()
    total = sum(m.numel() for m in ranked.values())
    assert sum(int((~m).sum()) for m in ranked.values()) == total // 4
    assert not ranked["transformer.h.0.mlp.c_fc"].any()
    each = Pruner(model, plan, strength=0.0).choose_masks()
    assert all(int((~m).sum()) == m.numel() // 4 for m in each.values())
    balanced = Pruner(model, plan, strength=0.0, scope="row-balanced").choose_masks(0.5)
    for mask in balanced.values():
        assert (mask.sum(1) == mask.shape[1] // 2).all()


def test_prune_may_go_on_in_steps_and_never_brings_groups_back() -> None:
    model = Net()
    pruner = Pruner(model, Plan.uniform("element", 0.9), strength=0.0)
    first = pruner.prune(0.3)[NAME]
    second = pruner.prune(0.6)[NAME]
    assert not (second & ~first).any()
    assert int((~second).sum()) == round(0.6 * second.numel())


def test_nan_weights_are_named() -> None:
    model = Net()
    with torch.no_grad():
        model.dense.weight[3, 4] = float("nan")
    with pytest.raises(ValueError, match=NAME):
        Pruner(model, Plan.uniform("tile", 0.5), strength=0.0).prune()


def test_wrapped_models_keep_their_names() -> None:
    model = torch.nn.DataParallel(Net())
    assert Pruner(model, Plan.uniform("tile", 0.5), strength=0.0).matrices[0].name == NAME
    compiled = torch.compile(Net())
    assert Pruner(compiled, Plan.uniform("tile", 0.5), strength=0.0).matrices[0].name == NAME


def test_strength_for_is_what_it_says() -> None:
    model = Net()
    pruner = Pruner(model, Plan.uniform("tile", 0.5), strength=0.0)
    pruner.reweight()
    start = pruner.norms()[NAME].sort().values
    pruner.strength = pruner.strength_for(0.5, total_lr=1.0)
    for _ in range(1000):
        pruner.reweight()
        pruner.after_step(lr=1e-3)
    edge = pruner.norms()[NAME].flatten().sort().values[3] / start.flatten().sort().values[3]
    assert 0.45 < float(edge) < 0.55


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -1.0}, "strength"),
        ({"strength": float("inf")}, "strength"),
        ({"strength": 1.0, "method": "adam"}, "method"),
        ({"strength": 1.0, "scope": "layer"}, "scope"),
        ({"strength": 1.0, "eps": 0.0}, "eps"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pruner(Net(), Plan.uniform("tile", 0.5), **options)


def test_after_step_needs_a_learning_rate() -> None:
    pruner = Pruner(Net(), Plan.uniform("tile", 0.5), strength=1.0)
    with pytest.raises(ValueError, match="lr, or an optimizer"):
        pruner.after_step()
    pruner.prune()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner.after_step()  # with λ = 0 there is nothing to scale by a learning rate
    with pytest.raises(ValueError, match="sparsity is 1"):
        pruner.prune(1.0)
