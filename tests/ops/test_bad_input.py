"""What can't be done is refused by name: the error's type, the op and the argument at fault."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import spatile as sp

from .arrays import normal

Q, K = normal((2, 5, 4, 8)), normal((2, 7, 2, 8), seed=1)
SELF = normal((2, 5, 4, 8), seed=2)
OUT, LSE = normal((2, 5, 4, 8)), np.zeros((2, 4, 5), np.float32)
PACKED = normal((9, 4, 8))
X, W = normal((5, 33)), normal((20, 33), seed=1)
GRAD = normal((5, 20))
TILES = np.ones((2, 3), bool)
ENDS = np.array([0, 5, 33])
NAN = float("nan")


def read_only(x: np.ndarray) -> np.ndarray:
    copy = x.copy()
    copy.setflags(write=False)
    return copy


# (op, arguments, options, error, how the message goes on after "op: ")
REFUSED: list[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    # attention: the arrays
    ("attention", (Q.astype(np.float64), K, K), {}, TypeError, "q"),
    ("attention", (Q, K.astype(np.float64), K), {}, TypeError, "k"),
    ("attention", (Q, K, K.astype(np.int32)), {}, TypeError, "v"),
    ("attention", (Q, K.astype(np.float16), K), {}, TypeError, "k"),
    ("attention", ("text", K, K), {}, TypeError, "q"),
    ("attention", (None, K, K), {}, TypeError, "q"),
    ("attention", (Q[0], K, K), {}, ValueError, "q|k"),
    ("attention", (Q[0, 0], K, K), {}, ValueError, "q"),
    ("attention", (Q, K[0], K), {}, ValueError, "k"),
    ("attention", (Q, K, K[..., 0]), {}, ValueError, "v"),
    ("attention", (Q, K[..., :6], K), {}, ValueError, r"k\.shape\[3\] is 6, expected 8"),
    ("attention", (Q, K[:1], K), {}, ValueError, r"k\.shape\[0\] is 1, expected 2"),
    ("attention", (Q, K, K[:1]), {}, ValueError, r"v\.shape\[0\] is 1, expected 2"),
    ("attention", (Q, K, K[:, :6]), {}, ValueError, r"v\.shape\[1\] is 6, expected 7"),
    ("attention", (Q, K, K[:, :, :1]), {}, ValueError, r"v\.shape\[2\] is 1, expected 2"),
    ("attention", (Q[:, :, :3], K, K), {}, ValueError, r"(q|k)\.shape\[2\] is [32]"),
    (
        "attention",
        (Q[:, :, :0], K[:, :, :0], K[:, :, :0]),
        {},
        ValueError,
        r"(q|k)\.shape\[2\] is 0",
    ),
    ("attention", (Q[..., :0], K[..., :0], K), {}, ValueError, r"(q|k)\.shape\[3\] is 0"),
    # attention: mask, bias, lengths
    ("attention", (Q, K, K), {"mask": np.ones((2, 4, 5, 7))}, TypeError, "mask"),
    ("attention", (Q, K, K), {"mask": np.ones((5, 7), bool)}, ValueError, "mask"),
    ("attention", (Q, K, K), {"mask": np.ones((2, 4, 5, 6), bool)}, ValueError, "mask"),
    ("attention", (Q, K, K), {"mask": np.ones((3, 1, 1, 7), bool)}, ValueError, "mask"),
    ("attention", (Q, K, K), {"bias": np.ones((2, 4, 5, 7), np.int64)}, TypeError, "bias"),
    ("attention", (Q, K, K), {"bias": np.ones((2, 4, 5, 7))}, TypeError, "bias"),
    ("attention", (Q, K, K), {"bias": np.ones((1, 3, 5, 7), np.float32)}, ValueError, "bias"),
    ("attention", (Q, K, K), {"bias": np.ones(7, np.float32)}, ValueError, "bias"),
    ("attention", (Q, K, K), {"lengths": np.array([5, 5])}, ValueError, r"lengths|k\.shape"),
    ("attention", (Q, SELF, SELF), {"lengths": np.array([5])}, ValueError, "lengths"),
    ("attention", (Q, SELF, SELF), {"lengths": np.array([5, 6])}, ValueError, "lengths"),
    ("attention", (Q, SELF, SELF), {"lengths": np.array([5, -1])}, ValueError, "lengths"),
    ("attention", (Q, SELF, SELF), {"lengths": np.array([5.0, 1.0])}, TypeError, "lengths"),
    # attention: numbers
    ("attention", (Q, K, K), {"window": (-1, 0)}, ValueError, "window"),
    ("attention", (Q, K, K), {"window": (1, 2, 3)}, ValueError, "window"),
    ("attention", (Q, K, K), {"window": (1.5, 2)}, TypeError, "window"),
    ("attention", (Q, K, K), {"window": 3}, TypeError, "window"),
    ("attention", (Q, K, K), {"scale": "big"}, TypeError, "scale"),
    ("attention", (Q, K, K), {"dropout": 1.0, "seed": 1}, ValueError, "dropout"),
    ("attention", (Q, K, K), {"dropout": -0.1, "seed": 1}, ValueError, "dropout"),
    ("attention", (Q, K, K), {"dropout": NAN, "seed": 1}, ValueError, "dropout"),
    ("attention", (Q, K, K), {"dropout": 0.1}, ValueError, "seed"),
    ("attention", (Q, K, K), {"dropout": 0.1, "seed": 0.5}, TypeError, "seed"),
    # attention: packed
    ("attention", (PACKED, PACKED, PACKED), {}, ValueError, "q|offsets"),
    ("attention", (Q, SELF, SELF), {"offsets": np.array([0, 10])}, ValueError, "q|offsets"),
    ("attention", (PACKED,) * 3, {"offsets": np.array([0, 5, 8])}, ValueError, "offsets"),
    ("attention", (PACKED,) * 3, {"offsets": np.array([1, 9])}, ValueError, "offsets"),
    ("attention", (PACKED,) * 3, {"offsets": np.array([0, 6, 4, 9])}, ValueError, "offsets"),
    ("attention", (PACKED,) * 3, {"offsets": np.array([0, 10])}, ValueError, "offsets"),
    ("attention", (PACKED,) * 3, {"offsets": np.array([], np.int64)}, ValueError, "offsets"),
    ("attention", (PACKED,) * 3, {"offsets": np.array([0.0, 9.0])}, TypeError, "offsets"),
    ("attention", (PACKED,) * 3, {"offsets": np.array([[0, 9]])}, ValueError, "offsets"),
    (
        "attention",
        (PACKED,) * 3,
        {"offsets": np.array([0, 9]), "kv_offsets": np.array([0, 4, 9])},
        ValueError,
        "kv_offsets",
    ),
    ("attention", (Q, SELF, SELF), {"kv_offsets": np.array([0, 9])}, ValueError, "kv_offsets"),
    (
        "attention",
        (PACKED,) * 3,
        {"offsets": np.array([0, 9]), "mask": np.ones((1, 1, 9, 9), bool)},
        NotImplementedError,
        "mask",
    ),
    (
        "attention",
        (PACKED,) * 3,
        {"offsets": np.array([0, 9]), "bias": np.ones((1, 1, 9, 9), np.float32)},
        NotImplementedError,
        "bias",
    ),
    (
        "attention",
        (PACKED,) * 3,
        {"offsets": np.array([0, 9]), "lengths": np.array([9])},
        (ValueError, NotImplementedError),
        "lengths",
    ),
    # attention: out
    ("attention", (Q, K, K), {"out": np.empty((2, 5, 4, 7), np.float32)}, ValueError, "out"),
    ("attention", (Q, K, K), {"out": np.empty((2, 5, 4, 8), np.float16)}, TypeError, "out"),
    ("attention", (Q, K, K), {"out": read_only(OUT)}, ValueError, "out"),
    # attention_backward
    ("attention_backward", (Q[:, :4], Q, K, K, OUT, LSE), {}, ValueError, "grad"),
    ("attention_backward", (Q.astype(np.float16), Q, K, K, OUT, LSE), {}, TypeError, "grad"),
    ("attention_backward", (Q, Q, K, K, OUT[:, :4], LSE), {}, ValueError, "out"),
    ("attention_backward", (Q, Q, K, K, OUT, LSE[:, :3]), {}, ValueError, "lse"),
    ("attention_backward", (Q, Q, K, K, OUT, LSE.astype(np.float64)), {}, TypeError, "lse"),
    ("attention_backward", (Q, Q, K[..., :6], K, OUT, LSE), {}, ValueError, r"k\.shape\[3\] is 6"),
    ("attention_backward", (Q, Q, K, K, OUT, LSE), {"dropout": 0.5}, ValueError, "seed"),
    ("attention_backward", (Q, Q, K, K, OUT, LSE), {"need_bias": True}, ValueError, "(need_)?bias"),
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
    # the rest
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
    ("topk", (X, 34), {}, ValueError, "k"),
    ("topk", (X, -1), {}, ValueError, "k"),
    ("topk", (X, 1.5), {}, TypeError, "k"),
    ("topk", (X.astype(np.int64), 1), {}, TypeError, "scores"),
    ("topk", (np.array([1, NAN, 2], np.float32), 1), {}, ValueError, "scores"),
    ("topk", (X, 1), {"offsets": np.array([0, 5])}, ValueError, "scores|offsets"),
    ("topk", (X[0], 1), {"offsets": np.array([0, 5])}, ValueError, "offsets"),
    ("topk", (X[0], 1), {"offsets": np.array([0, 20, 5, 33])}, ValueError, "offsets"),
    ("topk", (X[0], 3), {"offsets": np.array([0, 2, 33])}, ValueError, "k"),
    ("topk", (X[0], np.array([1, 1, 1])), {"offsets": np.array([0, 2, 33])}, ValueError, "k"),
    # select_tokens
    *(
        (
            "select_tokens",
            (X[0], keep),
            {"offsets": ENDS},
            ValueError,
            "keep is .*, expected a fraction",
        )
        for keep in (0.0, -1.0, 1.01, 2, NAN, np.array([0.5, 0.0]))
    ),
    *(
        ("select_tokens", (X[0], keep), {"offsets": ENDS}, TypeError, "keep")
        for keep in ("half", None, True)
    ),
    ("select_tokens", (X[0], 0.5), {"offsets": 33}, ValueError, r"offsets\.shape is"),
    ("topk", (X[0], 1), {"offsets": 33}, ValueError, r"offsets\.shape is"),
    ("select_tokens", (X[0], [0.5] * 3), {"offsets": ENDS}, ValueError, r"keep\.shape is \(3"),
    ("select_tokens", (X, 0.5), {"offsets": ENDS}, ValueError, r"importance\.shape is \(5, 33"),
    ("select_tokens", (X[0, 1:], 0.5), {"offsets": ENDS}, ValueError, r"importance\.shape is"),
    ("select_tokens", (X[0] * NAN, 0.5), {"offsets": ENDS}, ValueError, "importance holds NaN"),
    ("select_tokens", (X[0].astype(np.float64), 0.5), {"offsets": ENDS}, TypeError, "importance"),
    ("select_tokens", ("text", 0.5), {"offsets": ENDS}, TypeError, "importance"),
    ("select_tokens", (X[0], 0.5), {"offsets": np.array([0, 9, 5, 33])}, ValueError, "offsets"),
    ("select_tokens", (X[0], 0.5), {"offsets": np.array([1, 33])}, ValueError, r"offsets\[0"),
    ("select_tokens", (X[0], 0.5), {"offsets": np.array([0.5])}, TypeError, "offsets"),
    ("select_tokens", (X[0], 0.5), {"offsets": np.empty(0, int)}, ValueError, "offsets"),
    *(
        (
            "select_tokens",
            (X[0], 0.5),
            {"offsets": ENDS, "protect": position},
            ValueError,
            "protect holds position .*, sequence 0 has 5 tokens",
        )
        for position in (np.array([5]), np.array([-6]), (0, 31))
    ),
    (
        "select_tokens",
        (X[0], 0.5),
        {"offsets": ENDS, "protect": np.ones(32, bool)},
        ValueError,
        r"protect\.shape is \(32,\), expected \(33",
    ),
    ("select_tokens", (X[0], 0.5), {"offsets": ENDS, "protect": [0.5]}, TypeError, "protect"),
    ("select_tokens", (X[0], 0.5), {"offsets": ENDS, "lengths": [5, 27]}, ValueError, "lengths"),
    ("select_tokens", (X[0], 0.5), {"offsets": ENDS, "lengths": [5]}, ValueError, "lengths"),
    # gather_tokens
    ("gather_tokens", (X, np.array([0, 5])), {}, ValueError, r"index\[1\] is 5, expected 0 to 4"),
    ("gather_tokens", (X, np.array([-1])), {}, ValueError, r"index\[0\] is -1"),
    ("gather_tokens", (X, np.array([0.0])), {}, TypeError, "index"),
    ("gather_tokens", (X, np.array([[0]])), {}, ValueError, "index"),
    ("gather_tokens", (X.astype(np.float64), np.array([0])), {}, TypeError, "x"),
    ("gather_tokens", (np.float32(1), np.array([0])), {}, TypeError, "x"),
    ("gather_tokens", (np.ones((), np.float32), np.array([0])), {}, ValueError, "x"),
]


def described(case: tuple[Any, ...]) -> str:
    shapes = ",".join(
        f"{x.dtype}{list(x.shape)}" if hasattr(x, "shape") else repr(x)[:9] for x in case[1]
    )
    return f"{case[0]}-{shapes}-{','.join(case[2])}"


@pytest.mark.parametrize("case", REFUSED, ids=described)
def test_bad_input_is_refused_by_name(case: tuple[Any, ...]) -> None:
    op, arguments, options, error, argument = case
    with pytest.raises(error, match=rf"^{op}: ({argument})\b"):
        getattr(sp, op)(*arguments, **options)


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
    arguments: dict[str, tuple[Any, ...]] = {
        "attention": (Q, SELF, SELF, None),
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
