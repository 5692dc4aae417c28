"""sparsify: layers that compute kept groups only, and everything that must not notice."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import spatile as sp
from spatile import _core
from spatile.torch import (
    Plan,
    Pruner,
    PruningCallback,
    SparseLinear,
    Stages,
    densify,
    sparsify,
)
from spatile.torch.functional import LinearProduct


class Block(nn.Module):
    """One layer under the name that plans know."""

    def __init__(self, out: int, width: int, bias: bool = True) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict(
            {"layer": nn.ModuleList([nn.ModuleDict({"output": nn.ModuleDict()})])}
        )
        holder: Any = self.encoder["layer"][0]  # type: ignore[index]
        holder["output"]["dense"] = nn.Linear(width, out, bias=bias)

    @property
    def dense(self) -> Any:
        return self.get_submodule("encoder.layer.0.output.dense")


def pruned(model: nn.Module, pattern: str = "tile", sparsity: float = 0.5) -> Pruner:
    pruner = Pruner(model, Plan.uniform(pattern, sparsity), strength=0.0)
    pruner.prune()
    return pruner


def expanded(pruner: Pruner, index: int = 0) -> torch.Tensor:
    m = pruner.matrices[index]
    kept: torch.Tensor = sp.expand_mask(pruner.masks[m.name], m.shape, pattern=m.pattern)
    return kept


def grads(layer: Any, x: torch.Tensor, cotangent: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().requires_grad_()
    out = layer(x)
    wanted = [x, *layer.parameters()]
    return [out.detach(), *torch.autograd.grad(out, wanted, cotangent.to(out.dtype))]


@pytest.mark.parametrize("shape", [(48, 64), (40, 24), (16, 16), (33, 70)], ids=str)
@pytest.mark.parametrize(
    "pattern", ["tile", "tile:8x8", "tile:32x16", "tile:16x5", "row", "column", "head:8"]
)
def test_values_and_gradients_are_those_of_the_masked_layer(
    pattern: str, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    model = Block(*shape)
    pruner = pruned(model, pattern)
    keep = expanded(pruner)
    oracle = nn.Linear(shape[1], shape[0]).double()
    oracle.load_state_dict({n: p.double() for n, p in model.dense.state_dict().items()})
    x, cotangent = torch.randn(3, 7, shape[1]), torch.randn(3, 7, shape[0])
    expected = grads(oracle, x.double(), cotangent.double())
    expected[2] = expected[2] * keep

    assert sparsify(model, pruner) == ("encoder.layer.0.output.dense",)
    with torch.no_grad():
        # What stands in pruned places, after an optimizer's step for example, counts nowhere.
        model.dense.weight.add_(5.0 * ~keep)
    for found, wanted in zip(grads(model.dense, x, cotangent), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=2e-5)
    assert (grads(model.dense, x, cotangent)[2][~keep] == 0).all()


def test_strided_inputs_no_bias_and_one_row() -> None:
    model = Block(32, 48, bias=False)
    pruner = pruned(model)
    weight = model.dense.weight.detach().clone()
    sparsify(model, pruner)
    x = torch.randn(48, 5).t().requires_grad_()
    out = model.dense(x)
    out.sum().backward()  # the gradient is one number, expanded
    torch.testing.assert_close(out, x @ weight.t())
    torch.testing.assert_close(x.grad, weight.sum(0).expand(5, 48))
    torch.testing.assert_close(model.dense(x[0]), (x @ weight.t())[0])
    assert model.dense(torch.empty(0, 48)).shape == (0, 32)


def test_all_but_one_tile_pruned() -> None:
    model = Block(32, 32)
    pruner = pruned(model, sparsity=0.75)
    sparsify(model, pruner)
    x, cotangent = torch.randn(4, 32), torch.randn(4, 32)
    out, dx, dw, _ = grads(model.dense, x, cotangent)
    weight = model.dense.weight.detach()
    torch.testing.assert_close(out, x @ weight.t() + model.dense.bias.detach())
    torch.testing.assert_close(dx, cotangent @ weight)
    torch.testing.assert_close(dw, (cotangent.t() @ x) * expanded(pruner))


def test_checkpoints_and_optimizers_see_the_same_parameters(make_bert: Any) -> None:
    model = make_bert()
    before = dict(model.named_parameters())
    pruner = pruned(model)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    sparse = sparsify(model, pruner)
    assert len(sparse) == 12
    assert sorted(n for n, m in model.named_modules() if isinstance(m, SparseLinear)) == sorted(
        sparse
    )
    assert list(model.state_dict()) == list(state)
    for name, t in model.state_dict().items():
        assert torch.equal(t, state[name]), name
    assert all(p is before[name] for name, p in model.named_parameters())
    other = make_bert(seed=1)
    other.load_state_dict(model.state_dict())
    model.load_state_dict(other.state_dict())
    assert densify(model) == sparse
    assert {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {nn.Linear}
    assert not {"mask", "pattern"} & set(vars(model.bert.encoder.layer[0].output.dense))
    assert densify(model) == ()


def test_saved_and_loaded_by_transformers(make_bert: Any, tmp_path: Any) -> None:
    model = make_bert().eval()
    sparsify(model, pruned(model))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    ids = torch.arange(4, 16)[None]
    torch.testing.assert_close(model(ids).logits, loaded(ids).logits)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_step_equals_the_masked_dense_step(
    make_bert: Any, rows: list[dict[str, Any]], optimizer: str
) -> None:
    """Same optimizer state from before the pruning, same losses and weights after it."""
    losses, models = [], []
    for sparse in (False, True):
        model = make_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        if optimizer == "adamw":
            steps: Any = torch.optim.AdamW(
                model.parameters(), lr=1e-3, weight_decay=0.1, fused=True
            )
        else:
            steps = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        pruner = Pruner(model, Plan.uniform("tile", 0.5), strength=0.0, optimizer=steps)
        seen = []
        for i in range(6):
            if i == 2:
                pruner.prune()
                if sparse:
                    sparsify(model, pruner)
            batch = rows[4 * i : 4 * i + 4]
            loss = model(
                input_ids=torch.stack([r["input_ids"] for r in batch]),
                labels=torch.tensor([r["labels"] for r in batch]),
            ).loss
            loss.backward()
            steps.step()
            pruner.after_step()
            steps.zero_grad()
            seen.append(float(loss.detach()))
        losses.append(seen)
        models.append(model)
        for m in pruner.matrices if pruner.masks else ():
            assert (pruner.norms()[m.name][~pruner.masks[m.name]] == 0).all()
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-3, atol=2e-4, msg=name)


def test_pruning_more_takes_the_new_masks() -> None:
    model = Block(64, 64)
    pruner = pruned(model, sparsity=0.25)
    sparsify(model, pruner)
    pruner.prune(0.75)
    sparsify(model, pruner)
    assert model.dense.structure.sparsity == 0.75
    assert torch.equal(model.dense.mask, next(iter(pruner.masks.values())))
    assert "tile:16x16, 75.0% pruned" in repr(model)


def test_accumulation_and_activation_checkpointing_repeat_the_gradient() -> None:
    model = Block(32, 64)
    sparsify(model, pruned(model))
    x = torch.randn(6, 64, requires_grad=True)
    model.dense(x).square().sum().backward()
    whole = model.dense.weight.grad.clone()
    model.zero_grad()
    for part in x.detach().split(3):
        out = torch.utils.checkpoint.checkpoint(
            model.dense, part.clone().requires_grad_(), use_reentrant=False
        )
        out.square().sum().backward()
    torch.testing.assert_close(model.dense.weight.grad, whole, rtol=1e-5, atol=1e-5)


def test_used_twice_in_one_graph() -> None:
    model = Block(32, 32)
    pruner = pruned(model)
    keep, weight = expanded(pruner), model.dense.weight.detach().clone().requires_grad_()
    x = torch.randn(5, 32)
    bias = model.dense.bias.detach()
    nn.functional.linear(nn.functional.linear(x, weight, bias), weight, bias).sum().backward()
    sparsify(model, pruner)
    model.dense(model.dense(x)).sum().backward()
    torch.testing.assert_close(model.dense.weight.grad, weight.grad * keep, rtol=1e-5, atol=1e-5)


def test_frozen_weights_and_inputs_get_no_gradient() -> None:
    model = Block(32, 32)
    sparsify(model, pruned(model))
    model.dense.weight.requires_grad_(False)
    x = torch.randn(3, 32)
    model.dense(x).sum().backward()
    assert model.dense.weight.grad is None
    assert torch.equal(model.dense.bias.grad, torch.full((32,), 3.0))
    with torch.no_grad():
        assert not model.dense(x).requires_grad


def test_copies_and_pickles(make_bert: Any) -> None:
    model = make_bert().eval()
    sparsify(model, pruned(model))
    ids = torch.arange(4, 16)[None]
    expected = model(ids).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(ids).logits, expected)
        assert len(densify(other)) == 12
    assert len(densify(model)) == 12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dtype: torch.dtype) -> None:
    model = Block(32, 48).to(dtype)
    pruner = pruned(model)
    sparsify(model, pruner)
    x, cotangent = torch.randn(5, 48).to(dtype), torch.randn(5, 32).to(dtype)
    found = grads(model.dense, x, cotangent)
    assert {t.dtype for t in found} == {dtype}
    weight = model.dense.weight.detach().float()
    wanted = x.float() @ weight.t() + model.dense.bias.detach().float()
    torch.testing.assert_close(found[0].float(), wanted, rtol=1e-2, atol=1e-2)
    dw = (cotangent.float().t() @ x.float()) * expanded(pruner)
    torch.testing.assert_close(found[2].float(), dw, rtol=2e-2, atol=2e-2)


def test_autocast_casts_inputs_and_keeps_the_weights_gradient_whole() -> None:
    model = Block(32, 48)
    sparsify(model, pruned(model))
    x = torch.randn(5, 48, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = model.dense(x)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == model.dense.weight.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), model.dense(x).detach(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("pattern", ["row", "tile", "tile:8x16", "column", "head:16"])
@pytest.mark.parametrize("share", [0.05, 0.4, 0.7, 0.97])
def test_gradients_of_inputs_in_bfloat16(pattern: str, share: float) -> None:
    """Rows kept and dropped by chance: the matrix going back has dropped ones behind kept ones."""
    generator = torch.Generator().manual_seed(7)
    for out, width in ((128, 96), (80, 48), (256, 64)):
        w = torch.randn(out, width, generator=generator)
        grid = sp.patterns.as_pattern(pattern).mask_shape((out, width))
        mask = torch.rand(grid, generator=generator) < share
        packed = sp.pack(w.numpy(), mask.numpy(), pattern=pattern)
        x = torch.randn(70, width, generator=generator).bfloat16().requires_grad_()
        cotangent = torch.randn(70, out, generator=generator).bfloat16()
        kept = torch.from_numpy(packed.to_dense())
        (got,) = torch.autograd.grad(
            LinearProduct.apply(x, kept, None, packed),
            x,
            cotangent,  # type: ignore[no-untyped-call]
        )
        # Processors that do not multiply bfloat16 themselves need not round the weights to it.
        read = kept.bfloat16() if _core.bf16_is_native() else kept
        want = cotangent.double() @ read.double()
        torch.testing.assert_close(got.double(), want, rtol=1e-2, atol=2e-2)


def test_layers_that_would_gain_little_stay_dense() -> None:
    model = Block(64, 64)
    pruner = pruned(model, sparsity=0.25)
    assert sparsify(model, pruner, min_sparsity=0.5) == ()
    assert type(model.dense) is nn.Linear
    assert sparsify(model, pruner, min_sparsity=0.25) != ()


def test_single_elements_and_fused_matrices_stay_dense() -> None:
    model = Block(32, 32)
    assert sparsify(model, pruned(model, "element")) == ()
    config = transformers.GPT2Config(n_layer=1, n_embd=32, n_head=2, n_positions=8, vocab_size=9)
    gpt = transformers.GPT2Model(config)
    assert sparsify(gpt, pruned(gpt)) == ()


def test_what_cannot_be_made_sparse_is_refused() -> None:
    model = Block(32, 32)
    with pytest.raises(ValueError, match=r"sparsify: pruner has no masks, expected .*prune\(\)"):
        sparsify(model, Pruner(model, Plan.uniform("tile", 0.5), strength=0.0))
    with pytest.raises(ValueError, match=r"output.dense.weight is not the one that pruner prunes"):
        sparsify(Block(32, 32), pruned(model))
    with pytest.raises(ValueError, match="min_sparsity is 2, expected 0 to 1"):
        sparsify(model, pruned(model), min_sparsity=2)
    sparsify(model, pruned(model))
    with pytest.raises(ValueError, match=r"linear: x.shape\[1\] is 31, expected 32"):
        model.dense(torch.zeros(2, 31))
    with pytest.raises(TypeError, match=r"linear: x\.dtype is float64"):
        model.dense(torch.zeros(2, 32).double())


# ---- in a Trainer -------------------------------------------------------------------------------

STAGES = Stages(dense=1, reweighted=1, retrain=1)


class Kinds(transformers.TrainerCallback):
    """Counts the sparse layers at each step's end, and records the losses."""

    def __init__(self) -> None:
        self.sparse: list[int] = []
        self.losses: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        self.sparse.append(sum(isinstance(m, SparseLinear) for m in model.modules()))

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if "loss" in kwargs["logs"]:
            self.losses.append(kwargs["logs"]["loss"])


def retrained(
    make_bert: Any, train: Any, sparse: Any, *, sparsity: float = 0.5, **args: Any
) -> tuple[Any, Kinds, Any]:
    model = make_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    callback = PruningCallback(Plan.uniform("tile", sparsity), stages=STAGES, sparse=sparse)
    kinds = Kinds()
    train(model, [callback, kinds], logging_strategy="steps", logging_steps=1, **args)
    return model, kinds, callback


def test_the_retraining_stage_is_sparse_and_its_losses_are_the_dense_ones(
    make_bert: Any, train: Any
) -> None:
    dense, kinds_dense, _ = retrained(make_bert, train, False, max_grad_norm=0.0)
    sparse, kinds, callback = retrained(make_bert, train, "auto", max_grad_norm=0.0)
    assert kinds_dense.sparse == [0] * 18
    assert kinds.sparse == [0] * 12 + [12] * 6
    assert kinds.losses[:12] == kinds_dense.losses[:12]
    assert kinds.losses == pytest.approx(kinds_dense.losses, rel=1e-3)
    for (name, p), q in zip(dense.named_parameters(), sparse.named_parameters(), strict=True):
        torch.testing.assert_close(q[1], p, rtol=1e-2, atol=1e-3, msg=name)
    assert {type(m) for m in sparse.modules() if isinstance(m, nn.Linear)} == {nn.Linear}
    assert callback.history["norms"]["end"]["zeros"] == {"tile:16x16": 112}


def test_resumed_inside_the_retraining_stage_it_is_sparse_again(
    make_bert: Any, train: Any, tmp_path: Any
) -> None:
    whole, _, _ = retrained(make_bert, train, "auto", save_strategy="steps", save_steps=14)
    checkpoint = str(tmp_path / "run" / "checkpoint-14")
    again, kinds, _ = retrained(make_bert, train, "auto", resume=checkpoint)
    assert kinds.sparse == [12] * 4
    for (name, p), q in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_auto_asks_more_of_a_layer_under_bfloat16_autocast(make_bert: Any, train: Any) -> None:
    assert retrained(make_bert, train, "auto", bf16=True)[1].sparse == [0] * 18
    model, kinds, _ = retrained(make_bert, train, "auto", sparsity=0.75, bf16=True)
    assert kinds.sparse == [0] * 12 + [12] * 6
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert retrained(make_bert, train, True, bf16=True)[1].sparse == [0] * 12 + [12] * 6
    with pytest.raises(ValueError, match="sparse is 'no', expected True, False, 'auto'"):
        PruningCallback(Plan.uniform("tile", 0.5), stages=STAGES, sparse="no")  # type: ignore[arg-type]
