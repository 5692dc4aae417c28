"""What sp.second_order_prune and its parts refuse, by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import spatile as sp

from .arrays import normal

pytestmark = pytest.mark.usefixtures("cpu_tier")

W, GRAM = normal((20, 33)), np.eye(33)
MASK = np.ones((2, 3), bool)


def spoilt(x: np.ndarray, at: tuple[int, int], value: float) -> np.ndarray:
    copy = x.copy()
    copy[at] = value
    return copy


REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: prune(W.astype(np.float64)), TypeError, "w.dtype is float64"),
    (lambda: prune(W[0]), ValueError, "w has 1 dimensions, expected 2"),
    (lambda: prune("text"), TypeError, "w is a str"),
    (lambda: prune(spoilt(W, (17, 3), np.nan)), ValueError, r"w holds NaN .* group \(1, 0\)"),
    (lambda: prune(spoilt(W, (0, 32), np.inf)), ValueError, r"w holds NaN .* group \(0, 2\)"),
    (lambda: prune(gram=GRAM[:32]), ValueError, r"gram.shape\[0\] is 32, expected 33"),
    (lambda: prune(gram=GRAM[:, :5]), ValueError, r"gram.shape\[1\] is 5, expected 33"),
    (lambda: prune(gram=GRAM[0]), ValueError, "gram has 1 dimensions"),
    (lambda: prune(gram=GRAM.astype(np.float16)), TypeError, "gram.dtype is float16, expected"),
    (lambda: prune(gram=GRAM.astype(int)), TypeError, "gram.dtype is int64, expected float32"),
    (lambda: prune(gram=None), TypeError, "gram is a NoneType"),
    (lambda: prune(gram=spoilt(GRAM, (3, 4), 0.1)), ValueError, r"gram\[3, 4\] is 0.1 and"),
    (lambda: prune(gram=spoilt(GRAM, (4, 3), np.nan)), ValueError, r"gram\[3, 4\] .* symmetric"),
    (lambda: prune(gram=spoilt(GRAM, (4, 4), np.inf)), ValueError, r"gram\[4, 4\] is inf"),
    (lambda: prune(gram=spoilt(GRAM, (4, 4), -1.0)), ValueError, r"gram\[4, 4\] is -1"),
    (lambda: prune(gram=0 * GRAM), ValueError, "the diagonal of gram has the mean 0"),
    (lambda: prune(gram=3 - 2 * GRAM), ValueError, "gram with damping 0.01 is not positive"),
    (lambda: prune(damping=0.0), ValueError, "damping is 0, expected"),
    (lambda: prune(damping=-1.0), ValueError, "damping is -1, expected"),
    (lambda: prune(damping=float("nan")), ValueError, "damping is -?nan, expected"),
    (lambda: prune(damping=float("inf")), ValueError, "damping is inf, expected"),
    (lambda: prune(damping="much"), TypeError, "damping is a str, expected a number"),
    (lambda: prune(sparsity=1.0), ValueError, "sparsity is 1.0, expected"),
    (lambda: prune(sparsity=-0.1), ValueError, "sparsity is -0.1, expected"),
    (lambda: prune(sparsity=float("nan")), ValueError, "sparsity is nan, expected"),
    (lambda: prune(sparsity="half"), TypeError, "sparsity is a str, expected a number"),
    (lambda: prune(scope="row-balanced"), ValueError, "scope is 'row-balanced', expected"),
    (lambda: prune(pattern=["tile"]), TypeError, "pattern is a list, expected one"),
    (lambda: prune([W, W], [GRAM]), ValueError, "gram has 1 entries, expected 2"),
    (lambda: prune([W, W], GRAM), TypeError, "gram is a ndarray, expected a list"),
    (lambda: prune([W], [GRAM], pattern=["tile"] * 2), ValueError, "pattern has 2 entries"),
    (lambda: prune([W, W[0]], [GRAM] * 2), ValueError, r"w\[1\] has 1 dimensions"),
    (lambda: prune([W, W], [GRAM, -GRAM]), ValueError, r"gram\[1\]\[0, 0\] is -1"),
    (lambda: prune(torch.ones(20, 33, requires_grad=True)), ValueError, "w requires grad"),
]


def prune(w: Any = W, gram: Any = GRAM, **options: Any) -> Any:
    return sp.second_order_prune(w, gram, **{"pattern": "tile", "sparsity": 0.5, **options})


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case[2])
def test_bad_input_is_refused_by_name(
    case: tuple[Callable[[], Any], type[Exception], str],
) -> None:
    call, error, message = case
    with pytest.raises(error, match=f"^second_order_prune: {message}"):
        call()


def test_bad_input_of_the_parts() -> None:
    with pytest.raises(ValueError, match=r"^second_order_removals: damping is 0"):
        sp.second_order_removals(W, GRAM, pattern="tile", damping=0)
    with pytest.raises(ValueError, match=r"^second_order_apply: mask.shape\[1\] is 2, expected 3"):
        sp.second_order_apply(W, GRAM, MASK[:, :2], pattern="tile")
    with pytest.raises(TypeError, match=r"^second_order_apply: mask.dtype is int64, expected bool"):
        sp.second_order_apply(W, GRAM, MASK.astype(int), pattern="tile")
    for wrong, words in (
        (np.ones(3), r"row_weight\.shape is \(3,\), expected \("),
        (np.full(len(W), -1.0), "row_weight holds -1"),
        (np.full(len(W), np.nan), "row_weight holds nan"),
    ):
        with pytest.raises(ValueError, match=f"^second_order_removals: {words}"):
            sp.second_order_removals(W, GRAM, pattern="tile", row_weight=wrong)
    for value in (np.inf, np.nan):  # also where the row counts nothing, and without a warning
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ValueError, match=r"^second_order_removals: w holds NaN or infin"):
                sp.second_order_removals(
                    spoilt(W, (3, 4), value), GRAM, pattern="tile", row_weight=np.zeros(len(W))
                )
    with pytest.raises(TypeError, match=r"^second_order_removals: w\.dtype is float64"):
        sp.second_order_removals(
            W.astype(np.float64), GRAM, pattern="tile", row_weight=np.ones(len(W))
        )
    with pytest.raises(TypeError, match=r"^second_order_mask: removals\[0\] is a ndarray"):
        sp.second_order_mask([W], sparsity=0.5)
    with pytest.raises(ValueError, match=r"^second_order_mask: scope is 'row'"):
        sp.second_order_mask(
            sp.second_order_removals(W, GRAM, pattern="tile"), sparsity=0.5, scope="row"
        )
