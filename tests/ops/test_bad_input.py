"""What products, groups, masks and row ops refuse by name, and what every op does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import spatile as sp

from .arrays import normal
from .refusals import NAN, Refusal, assert_refused, described, read_only

X, W = normal((5, 33)), normal((20, 33), seed=1)
GRAD = normal((5, 20))
TILES = np.ones((2, 3), bool)
REFUSED: list[Refusal] = [
    # linear
    ("linear", (X.astype(np.float64), W), {}, TypeError, "x"),
    ("linear", (X, W.astype(np.int32)), {}, TypeError, "w"),
    ("linear", (X[:, :32], W), {}, ValueError, r"x\.shape\[1\] is 32, expected 33"),
    ("linear", (np.float32(3), W), {}, (TypeError, ValueError), "x"),
    ("linear", (X, W[0]), {}, ValueError, "w"),
    ("linear", (X, W), {"bias": np.ones(19, np.float32)}, ValueError, "bias"),
    ("linear", (X, W), {"bias": np.ones((1, 20), np.float32)}, ValueError, "bias"),
    ("linear", (X, W), {"bias": np.ones(20)}, TypeError, "bias"),
    ("linear", (X, W), {"residual": GRAD[:4]}, ValueError, "residual"),
    ("linear", (X, W), {"residual": GRAD.astype(np.float64)}, TypeError, "residual"),
    ("linear", (X, W), {"activation": "swish"}, ValueError, "activation"),
    ("linear", (X, W), {"compute": "int3"}, (ValueError, NotImplementedError), "compute"),
    ("linear", (X, W), {"out": np.empty((5, 21), np.float32)}, ValueError, "out"),
    ("linear", (X, W), {"out": np.empty((5, 20))}, TypeError, "out"),
    ("linear", (X, W), {"out": read_only(GRAD)}, ValueError, "out"),
    ("linear_backward", (GRAD[:4], X, W), {}, ValueError, "grad|x"),
    ("linear_backward", (GRAD[:, :19], X, W), {}, ValueError, "grad"),
    ("linear_backward", (GRAD, X[:, :32], W), {}, ValueError, "x"),
    ("linear_backward", (GRAD.astype(np.float64), X, W), {}, TypeError, "grad"),
    ("linear_backward", (GRAD, X, W), {"need": ("weight",)}, ValueError, "need"),
    # groups
    ("group_norms", (W[0],), {"pattern": "tile"}, ValueError, "w"),
    ("group_norms", (W.astype(np.float64),), {"pattern": "tile"}, TypeError, "w"),
    ("group_beta", (W[None],), {"pattern": "tile"}, ValueError, "w"),
    ("group_beta", (W,), {"pattern": "tile", "eps": -1.0}, ValueError, "eps"),
    (
        "group_lasso",
        (W,),
        {"pattern": "tile", "beta": np.ones((3, 3), np.float32)},
        ValueError,
        "beta",
    ),
    ("group_lasso", (W,), {"pattern": "tile", "beta": np.ones((2, 3), bool)}, TypeError, "beta"),
    (
        "group_lasso_grad",
        (W,),
        {"pattern": "row", "beta": np.ones(20, np.float32), "strength": 1.0},
        ValueError,
        "beta",
    ),
    ("group_lasso_grad", (W,), {"pattern": "row", "strength": NAN}, ValueError, "strength"),
    ("add_group_lasso_grad_", (GRAD, W), {"pattern": "tile", "strength": 1.0}, ValueError, "grad"),
    (
        "add_group_lasso_grad_",
        (read_only(W), W),
        {"pattern": "tile", "strength": 1.0},
        ValueError,
        "grad",
    ),
    ("group_shrink_", (read_only(W),), {"pattern": "tile", "strength": 1.0}, ValueError, "w"),
    ("group_shrink_", (W.copy(),), {"pattern": "tile", "strength": -1.0}, ValueError, "strength"),
    ("group_shrink_", (W.copy(),), {"pattern": "tile", "strength": NAN}, ValueError, "strength"),
    # masks
    ("prune_mask", (W,), {"pattern": "tile", "sparsity": 1.0}, ValueError, "sparsity"),
    ("prune_mask", (W,), {"pattern": "tile", "sparsity": -0.1}, ValueError, "sparsity"),
    ("prune_mask", (W,), {"pattern": "tile", "sparsity": NAN}, ValueError, "sparsity"),
    ("prune_mask", (W,), {"pattern": "tile", "sparsity": 0.5, "scope": "row"}, ValueError, "scope"),
    ("prune_mask", (W[0],), {"pattern": "tile", "sparsity": 0.5}, ValueError, "w"),
    ("prune_mask", (W.astype(int),), {"pattern": "tile", "sparsity": 0.5}, TypeError, "w"),
    ("prune_mask", (W * np.float32(NAN),), {"pattern": "tile", "sparsity": 0.5}, ValueError, "w"),
    (
        "prune_mask",
        ([W, W + np.float32(np.inf)],),
        {"pattern": "tile", "sparsity": 0.5},
        ValueError,
        "w",
    ),
    ("prune_mask", ([W, W],), {"pattern": ["tile"], "sparsity": 0.5}, ValueError, "pattern"),
    ("expand_mask", (TILES, (20, 50)), {"pattern": "tile"}, ValueError, "mask"),
    ("expand_mask", (TILES.astype(np.float32), (20, 33)), {"pattern": "tile"}, TypeError, "mask"),
    ("apply_mask_", (W.copy(), TILES[:1]), {"pattern": "tile"}, ValueError, "mask"),
    ("apply_mask_", (W.copy(), TILES.astype(int)), {"pattern": "tile"}, TypeError, "mask"),
    ("apply_mask_", (read_only(W), TILES), {"pattern": "tile"}, ValueError, "w"),
    ("pack", (W, TILES[:1]), {}, ValueError, "mask"),
    ("pack", (W, TILES.astype(np.uint8)), {}, TypeError, "mask"),
    ("pack", (W[0],), {}, ValueError, "w"),
    ("pack", (W.astype(np.float64),), {}, TypeError, "w"),
    # rows
    ("layer_norm", (X, np.ones(32, np.float32), np.ones(33, np.float32)), {}, ValueError, "weight"),
    ("layer_norm", (X, np.ones(33, np.float32), np.ones(1, np.float32)), {}, ValueError, "bias"),
    ("layer_norm", (X, np.ones(33), np.ones(33, np.float32)), {}, TypeError, "weight"),
    ("layer_norm", (X.astype(int), W[0], W[0]), {}, TypeError, "x"),
    ("layer_norm", (X, W[0], W[0]), {"residual": X[:4]}, ValueError, "residual"),
    ("layer_norm", (X, W[0], W[0]), {"eps": -1.0}, ValueError, "eps"),
    ("layer_norm", (X[0, 0], W[0], W[0]), {}, (TypeError, ValueError), "x"),
    ("gelu", (X,), {"approximate": "sigmoid"}, ValueError, "approximate"),
    ("gelu", (X.astype(np.float64),), {}, TypeError, "x"),
    ("dropout", (X,), {"p": 1.0, "seed": 0}, ValueError, "p"),
    ("dropout", (X,), {"p": -0.1, "seed": 0}, ValueError, "p"),
    ("dropout", (X,), {"p": NAN, "seed": 0}, ValueError, "p"),
    ("dropout", (X,), {"p": "half", "seed": 0}, TypeError, "p"),
    ("dropout", (X,), {"p": 0.1, "seed": -1}, ValueError, "seed"),
    ("dropout", (X,), {"p": 0.1, "seed": 2**64}, ValueError, "seed"),
    ("dropout", (X,), {"p": 0.1, "seed": 0.5}, TypeError, "seed"),
    ("dropout", (X.astype(np.float64),), {"p": 0.1, "seed": 0}, TypeError, "x"),
    ("softmax", (X.astype(np.int64),), {}, TypeError, "x"),
    ("softmax", (np.array(1, np.float32),), {}, ValueError, "x"),
    ("embedding", (X, W), {}, TypeError, "ids"),
    ("embedding", (np.array([True]), W), {}, TypeError, "ids"),
    ("embedding", (np.array([0]), W[0]), {}, ValueError, "table"),
    ("embedding", (np.array([0]), W.astype(np.float64)), {}, TypeError, "table"),
    ("embedding", (np.array([0]), W[:0]), {}, ValueError, "ids"),
]


@pytest.mark.parametrize("case", REFUSED, ids=described)
def test_bad_input_is_refused_by_name(case: Refusal) -> None:
    assert_refused(case)


@pytest.mark.parametrize(
    "op", ["group_norms", "group_beta", "group_lasso", "pack", "prune_mask", "expand_mask"]
)
@pytest.mark.parametrize("pattern", ["tiles", "tile:0x4", "tile:4", 16, None])
def test_an_unknown_pattern_is_refused(op: str, pattern: Any) -> None:
    arguments: tuple[Any, ...] = (TILES, (20, 33)) if op == "expand_mask" else (W,)
    options = {"sparsity": 0.5} if op == "prune_mask" else {}
    with pytest.raises((ValueError, TypeError), match=r"pattern|Tile"):
        getattr(sp, op)(*arguments, pattern=pattern, **options)


REQUIRES_GRAD = {
    "attention": ((2, 5, 4, 8), (2, 5, 4, 8), (2, 5, 4, 8)),
    "linear": ((5, 33), (20, 33)),
    "layer_norm": ((5, 33), (33,), (33,)),
    "gelu": ((5, 33),),
    "softmax": ((5, 33),),
    "group_norms": ((20, 33),),
    "prune_mask": ((20, 33),),
    "group_shrink_": ((20, 33),),
    "pack": ((20, 33),),
}


@pytest.mark.parametrize("op", REQUIRES_GRAD)
def test_a_tensor_that_requires_grad_is_sent_to_spatile_torch(op: str) -> None:
    """Silently losing the gradient would be worse."""
    options = {
        "group_norms": {"pattern": "tile"},
        "prune_mask": {"pattern": "tile", "sparsity": 0.5},
        "group_shrink_": {"pattern": "tile", "strength": 1.0},
    }.get(op, {})
    shapes = REQUIRES_GRAD[op]
    for leaf in range(len(shapes)):
        tensors = [torch.ones(shape) for shape in shapes]
        tensors[leaf].requires_grad_()
        with pytest.raises((TypeError, ValueError, RuntimeError), match=rf"{op}: .*spatile\.torch"):
            getattr(sp, op)(*tensors, **options)


@pytest.mark.parametrize("option", ["bias", "residual", "out"])
def test_an_option_that_requires_grad_is_refused_too(option: str) -> None:
    x, w = torch.ones(5, 33), torch.ones(20, 33)
    shape = (20,) if option == "bias" else (5, 20)
    with pytest.raises(
        (TypeError, ValueError, RuntimeError), match=rf"linear: {option}.*spatile\.torch"
    ):
        sp.linear(x, w, **{option: torch.ones(shape, requires_grad=True)})


@pytest.mark.parametrize("kind", ["big-endian", "complex", "object", "list"])
def test_other_kinds_of_array_are_refused(kind: str) -> None:
    x: Any = {
        "big-endian": X.astype(">f4"),
        "complex": X.astype(np.complex64),
        "object": X.astype(object),
        "list": X.tolist(),
    }[kind]
    for op in ("gelu", "softmax"):
        with pytest.raises(TypeError, match=rf"^{op}: x\b"):
            getattr(sp, op)(x)


@pytest.mark.parametrize(
    "op", ["attention", "linear", "layer_norm", "topk", "group_norms", "prune_mask"]
)
def test_options_are_keyword_only(op: str) -> None:
    heads = normal((2, 5, 4, 8))
    arguments: dict[str, tuple[Any, ...]] = {
        "attention": (heads, heads, heads, None),
        "linear": (X, W, None),
        "layer_norm": (X, W[0], W[0], 1e-5),
        "topk": (X, 1, None),
        "group_norms": (W, "tile"),
        "prune_mask": (W, "tile", 0.5),
    }
    with pytest.raises(TypeError, match="positional"):
        getattr(sp, op)(*arguments[op])


def test_an_unknown_tier_is_refused() -> None:
    with pytest.raises(ValueError, match="tier"):
        sp.device._set_cpu_tier("sse9")


@pytest.mark.parametrize("n", [0, -1, 10**9])
def test_a_silly_number_of_threads_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match="threads"):
        sp.set_num_threads(n)
