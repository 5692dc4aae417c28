"""One ordinary call of every op, for the tests that ask the same of all: memory, not values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import spatile as sp

from ..conftest import elsewhere
from .arrays import normal


class Call(NamedTuple):
    """``op(*arrays, **options)``; ``changes`` numbers the arrays that the op may write."""

    op: str
    arrays: tuple[np.ndarray, ...]
    options: dict[str, Any]
    changes: tuple[int, ...] = ()

    def __call__(self, *arrays: Any) -> Any:
        function: Callable[..., Any] = getattr(sp, self.op)
        return function(*(arrays or self.arrays), **self.options)


def attention_calls(dtype: str) -> dict[str, Call]:
    q = normal((2, 19, 4, 24), seed=1, dtype=dtype)
    k, v = (normal((2, 21, 2, 24), seed=s, dtype=dtype) for s in (2, 3))
    grad = normal(q.shape, seed=4, dtype=dtype)
    mask = np.random.default_rng(5).random((2, 1, 19, 21)) < 0.7
    bias = normal((1, 4, 19, 21), seed=6, dtype=dtype)
    out = normal(q.shape, seed=7, dtype=dtype)
    lse = np.full((2, 4, 19), 5, np.float32)
    more = {"return_lse": True, "return_importance": True}
    masks: dict[str, Any] = {"mask": mask, "bias": bias, "dropout": 0.1, "seed": 3}
    packed_q, packed_k = (x.reshape(-1, *x.shape[2:]) for x in (q[:, :, :, :], k))
    packing = {"offsets": np.array([0, 5, 38]), "kv_offsets": np.array([0, 30, 42])}
    packed_back = (grad.reshape(packed_q.shape), packed_q, packed_k, v.reshape(packed_k.shape))
    return {
        "attention": Call("attention", (q, k, v), {}),
        "attention, everything": Call("attention", (q, k, v), {**masks, **more}),
        "attention, causal": Call(
            "attention", (q, k, v), {"causal": True, "window": (3, 3), **more}
        ),
        "attention, lengths": Call("attention", (q, q, q), {"lengths": np.array([4, 19]), **more}),
        "attention, packed": Call(
            "attention", (packed_q, packed_k, v.reshape(packed_k.shape)), {**packing, **more}
        ),
        "attention_backward": Call("attention_backward", (grad, q, k, v, out, lse), {}),
        "attention_backward, everything": Call(
            "attention_backward", (grad, q, k, v, out, lse), {**masks, "need_bias": True}
        ),
        "attention_backward, packed": Call(
            "attention_backward",
            (*packed_back, out.reshape(packed_q.shape), lse.reshape(4, 38)),
            packing,
        ),
    }


def linear_calls(dtype: str) -> dict[str, Call]:
    x, w = normal((19, 33), seed=1, dtype=dtype), normal((50, 33), seed=2, dtype=dtype)
    grad, bias = normal((19, 50), seed=3, dtype=dtype), normal((50,), seed=4, dtype=dtype)
    rng = np.random.default_rng(6)
    epilogue = {"bias": bias, "activation": "gelu", "residual": grad}
    calls = {
        "linear": Call("linear", (x, w), epilogue),
        "linear_backward": Call("linear_backward", (grad, x, w), {}),
    }
    for pattern in ("tile", "row", "column", "element"):
        mask = rng.random(sp.as_pattern(pattern).mask_shape(w.shape)) < 0.5
        calls[f"pack, {pattern}"] = Call("pack", (w, mask), {"pattern": pattern})
        packed = {"w": sp.pack(w, mask, pattern=pattern)}
        calls[f"linear, {pattern}"] = Call("linear", (x,), {**packed, **epilogue})
        calls[f"linear_backward, {pattern}"] = Call("linear_backward", (grad, x), packed)
    return calls


def group_calls(dtype: str) -> dict[str, Call]:
    w, grad = normal((50, 33), seed=2, dtype=dtype), normal((50, 33), seed=3, dtype=dtype)
    calls = {}
    for pattern in ("tile", "row", "column", "element"):
        shape = sp.as_pattern(pattern).mask_shape(w.shape)
        beta = np.random.default_rng(6).random(shape).astype(np.float32)
        mask, strong = beta < 0.5, {"pattern": pattern, "beta": beta, "strength": 0.1}
        calls |= {
            f"group_norms, {pattern}": Call("group_norms", (w,), {"pattern": pattern}),
            f"group_beta, {pattern}": Call("group_beta", (w,), {"pattern": pattern}),
            f"group_lasso, {pattern}": Call(
                "group_lasso", (w,), {"pattern": pattern, "beta": beta}
            ),
            f"group_lasso_grad, {pattern}": Call("group_lasso_grad", (w,), strong),
            f"add_group_lasso_grad_, {pattern}": Call(
                "add_group_lasso_grad_", (grad, w), strong, (0,)
            ),
            f"group_shrink_, {pattern}": Call("group_shrink_", (w,), strong, (0,)),
            f"prune_mask, {pattern}": Call(
                "prune_mask", (w,), {"pattern": pattern, "sparsity": 0.5}
            ),
            f"expand_mask, {pattern}": Call(
                "expand_mask", (mask,), {"shape": w.shape, "pattern": pattern}
            ),
            f"apply_mask_, {pattern}": Call("apply_mask_", (w, mask), {"pattern": pattern}, (0,)),
        }
    return calls


def second_order_calls(dtype: str) -> dict[str, Call]:
    w, x = normal((50, 33), seed=2, dtype=dtype), normal((70, 33), seed=3)
    calls = {}
    for pattern in ("tile", "row", "column"):
        shape = sp.as_pattern(pattern).mask_shape(w.shape)
        mask = np.random.default_rng(6).random(shape) < 0.5
        options: dict[str, Any] = {"gram": x.T @ x, "pattern": pattern}
        calls |= {
            f"second_order_removals, {pattern}": Call("second_order_removals", (w,), options),
            f"second_order_apply, {pattern}": Call(
                "second_order_apply", (w,), {"mask": mask, **options}
            ),
            f"second_order_prune, {pattern}": Call(
                "second_order_prune", (w,), {"sparsity": 0.5, **options}
            ),
        }
    return calls


def other_calls(dtype: str) -> dict[str, Call]:
    x, row = normal((7, 33), seed=1, dtype=dtype), normal((33,), seed=2, dtype=dtype)
    ids = np.random.default_rng(3).integers(0, 7, (4, 5))
    return {
        "layer_norm": Call("layer_norm", (x, row, row), {"residual": x}),
        "gelu": Call("gelu", (x,), {}),
        "gelu, tanh": Call("gelu", (x,), {"approximate": "tanh"}),
        "dropout": Call("dropout", (x,), {"p": 0.3, "seed": 5}),
        "softmax": Call("softmax", (x,), {}),
        "embedding": Call("embedding", (ids, x), {}),
        "topk": Call("topk", (x,), {"k": 9}),
        "select_tokens": Call(
            "select_tokens",
            (row,),
            {"keep": 0.4, "offsets": np.array([0, 10, 33]), "protect": np.arange(33) % 8 == 0},
        ),
        "gather_tokens": Call("gather_tokens", (x, np.array([0, 2, 6])), {}),
        "topk, packed": Call("topk", (row,), {"k": 3, "offsets": np.array([0, 10, 33])}),
    }


def all_calls(dtype: str = "float32") -> dict[str, Call]:
    calls = attention_calls(dtype) | linear_calls(dtype) | group_calls(dtype) | other_calls(dtype)
    # The CUDA backend leaves second-order pruning to the CPU.
    return calls if elsewhere() else calls | second_order_calls(dtype)
