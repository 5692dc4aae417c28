"""What attention and its gradient refuse, by name."""

from __future__ import annotations

import numpy as np
import pytest

from .arrays import normal
from .refusals import NAN, Refusal, assert_refused, described, read_only

Q, K = normal((2, 5, 4, 8)), normal((2, 7, 2, 8), seed=1)
SELF = normal((2, 5, 4, 8), seed=2)
OUT, LSE = normal((2, 5, 4, 8)), np.zeros((2, 4, 5), np.float32)
PACKED = normal((9, 4, 8))
REFUSED: list[Refusal] = [
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
]


@pytest.mark.parametrize("case", REFUSED, ids=described)
def test_bad_input_is_refused_by_name(case: Refusal) -> None:
    assert_refused(case)
