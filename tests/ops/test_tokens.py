"""sp.select_tokens and sp.gather_tokens: which tokens of packed sequences stay, and their rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import spatile as sp
from spatile import reference

from .arrays import DTYPES, f64, normal, strided_copies, to_torch

pytestmark = pytest.mark.usefixtures("cpu_tier")

FEW = st.sampled_from([0.0, 0.5, 1.0, 1.5, np.inf])


def offsets_of(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


@given(lengths=st.lists(st.integers(0, 40), max_size=6), data=st.data())
def test_any_sequences_any_keep_any_ties(lengths: list[int], data: st.DataObject) -> None:
    offsets = offsets_of(lengths)
    t = int(offsets[-1])
    scores = np.array(data.draw(st.lists(FEW, min_size=t, max_size=t)), np.float32)
    keep: Any = data.draw(st.floats(0.001, 1.0))
    if data.draw(st.booleans()):
        keep = np.array([data.draw(st.floats(0.001, 1.0)) for _ in lengths])
    options: dict[str, Any] = {"offsets": offsets}
    kind = data.draw(st.sampled_from(["default", "mask", "positions"]))
    if kind == "mask":
        options["protect"] = np.array(
            data.draw(st.lists(st.booleans(), min_size=t, max_size=t)), bool
        )
    elif kind == "positions":
        least = min((n for n in lengths if n), default=1)
        some = st.lists(st.integers(-least, least - 1), max_size=4)
        options["protect"] = np.array(data.draw(some), np.int64)
    if data.draw(st.booleans()):
        options["lengths"] = np.array(
            [n + data.draw(st.integers(0, 30)) for n in lengths], np.int64
        )
    got = sp.select_tokens(scores, keep, **options)
    want = reference.select_tokens(scores, keep, **options)
    assert_array_equal(got.index, want.index)
    assert_array_equal(got.offsets, want.offsets)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_and_kinds(dtype: str) -> None:
    scores, offsets = normal((300,), dtype=dtype), offsets_of([100, 0, 37, 163])
    want = reference.select_tokens(f64(scores), 0.4, offsets=offsets)
    got = sp.select_tokens(scores, 0.4, offsets=offsets)
    assert_array_equal(got.index, want.index)
    assert np.diff(got.offsets).tolist() == [40, 0, 15, 65]
    tensor = sp.select_tokens(to_torch(scores), 0.4, offsets=torch.from_numpy(offsets))
    assert isinstance(tensor.index, torch.Tensor)
    assert_array_equal(tensor.index.numpy(), want.index)
    for strided in strided_copies(scores).values():
        assert_array_equal(sp.select_tokens(strided, 0.4, offsets=offsets).index, want.index)


def test_a_cascade_counts_from_the_first_lengths() -> None:
    """Half of 9 are 5 (half up), a quarter of 9 are 2: not half of 5."""
    scores, lengths = np.arange(9, dtype=np.float32), np.array([9])
    first = sp.select_tokens(scores, 0.5, offsets=np.array([0, 9]), lengths=lengths)
    assert first.index.tolist() == [0, 5, 6, 7, 8]
    then = sp.select_tokens(scores[first.index], 0.25, offsets=first.offsets, lengths=lengths)
    assert first.index[then.index].tolist() == [0, 8]


def test_what_is_protected_stays() -> None:
    scores, offsets = -np.arange(12, dtype=np.float32), np.array([0, 8, 12])
    keep = {"keep": 0.25, "offsets": offsets}
    assert sp.select_tokens(scores[::-1].copy(), **keep).index.tolist() == [0, 7, 8]
    assert sp.select_tokens(scores, **keep, protect=(-1,)).index.tolist() == [0, 7, 11]
    assert sp.select_tokens(scores, **keep, protect=(1, 2, -1)).index.tolist() == [
        1,
        2,
        7,
        9,
        10,
        11,
    ]
    assert sp.select_tokens(scores[::-1].copy(), **keep, protect=()).index.tolist() == [6, 7, 11]
    # Even against an infinite score.
    scores[5] = np.inf
    assert sp.select_tokens(scores, 0.1, offsets=offsets).index.tolist() == [0, 8]


def test_one_token_equal_scores_and_keep_one() -> None:
    one = sp.select_tokens(np.array([3.0], np.float32), 0.01, offsets=np.array([0, 1]))
    assert one.index.tolist() == [0]
    equal = sp.select_tokens(np.ones(10, np.float32), 0.5, offsets=np.array([0, 4, 10]))
    assert equal.index.tolist() == [0, 1, 4, 5, 6]
    every = sp.select_tokens(normal((10,)), 1.0, offsets=np.array([0, 4, 10]))
    assert every.index.tolist() == list(range(10))
    none = sp.select_tokens(np.empty(0, np.float32), 0.5, offsets=np.array([0]))
    assert none.index.tolist() == []
    assert none.offsets.tolist() == [0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(9,), (9, 33), (9, 4, 24), (9, 0)])
@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
def test_gathered_rows(shape: tuple[int, ...], dtype: str, index_dtype: Any) -> None:
    x = normal(shape, dtype=dtype)
    index = np.array([0, 3, 3, 8], index_dtype)
    got = sp.gather_tokens(x, index)
    assert got.dtype == DTYPES[dtype]
    assert_array_equal(f64(got), reference.gather_tokens(f64(x), index))
    assert_array_equal(f64(sp.gather_tokens(to_torch(x), index)), f64(got))
    for strided in strided_copies(x).values():
        assert_array_equal(f64(sp.gather_tokens(strided, index)), f64(got))
    assert sp.gather_tokens(x, index[:0]).shape == (0, *shape[1:])


ROW, ENDS = np.arange(6, dtype=np.float32), np.array([0, 4, 6])
HOLES = np.array([1, np.nan, 2, 3, 4, 5], np.float32)
REFUSED: list[tuple[str, Any, Any, dict[str, Any]]] = [
    ("topk", ROW, 7, {}),
    ("topk", ROW, -1, {}),
    ("topk", ROW, 2.5, {}),
    ("topk", ROW, np.array([1, 2]), {}),
    ("topk", np.array(3, np.float32), 0, {}),
    ("topk", HOLES, 1, {}),
    ("topk", ROW, 2, {"offsets": [0, 3, 5]}),
    ("topk", ROW, 2, {"offsets": [1, 3, 6]}),
    ("topk", ROW, 2, {"offsets": [0, 4, 3, 6]}),
    ("topk", ROW, 2, {"offsets": []}),
    ("topk", ROW, 2, {"offsets": 6}),
    ("topk", ROW, 2, {"offsets": [[0, 6]]}),
    ("topk", ROW, 2, {"offsets": [0.0, 6.0]}),
    ("topk", ROW, 2.0, {"offsets": ENDS}),
    ("topk", ROW, [1, 2, 3], {"offsets": ENDS}),
    ("topk", ROW, 3, {"offsets": ENDS}),
    ("topk", HOLES, 1, {"offsets": ENDS}),
    ("topk", ROW.reshape(2, 3), 2, {"offsets": ENDS}),
    ("select_tokens", ROW, 0.5, {"offsets": [1, 6]}),
    ("select_tokens", ROW, 0.5, {"offsets": [0, 5]}),
    ("select_tokens", ROW, 0.5, {"offsets": [0, 4, 3, 6]}),
    ("select_tokens", ROW, 0.5, {"offsets": []}),
    ("select_tokens", ROW, 0.5, {"offsets": [0.0, 6]}),
    ("select_tokens", ROW, 0.5, {"offsets": 6}),
    ("select_tokens", ROW.reshape(2, 3), 0.5, {"offsets": ENDS}),
    ("select_tokens", HOLES, 0.5, {"offsets": ENDS}),
    *[
        ("select_tokens", ROW, keep, {"offsets": ENDS})
        for keep in (0.0, 1.5, float("nan"), [0.5] * 3, [[0.5]], "a", True)
    ],
    *[
        ("select_tokens", ROW, 0.5, {"offsets": ENDS, "lengths": lengths})
        for lengths in ([4, 1], [4], [4.5, 2], 6, [[4, 2]])
    ],
    ("select_tokens", ROW, 0.5, {"offsets": [0, 6], "lengths": 6}),
    ("select_tokens", ROW[:0], 0.5, {"offsets": [0], "lengths": 0}),
    *[
        ("select_tokens", ROW, 0.5, {"offsets": ENDS, "protect": protect})
        for protect in ([2], [-3], [0.5], 2, np.zeros(4, bool))
    ],
    ("gather_tokens", ROW, np.array([0, 7]), {}),
    ("gather_tokens", ROW, np.array([-1]), {}),
    ("gather_tokens", ROW, np.array([0.5]), {}),
    ("gather_tokens", ROW, np.array([[0]]), {}),
    ("gather_tokens", ROW, np.empty(0), {}),
    ("gather_tokens", np.array(3, np.float32), np.array([0]), {}),
]


@pytest.mark.parametrize(("name", "values", "what", "options"), REFUSED)
def test_the_twin_refuses_what_the_op_refuses_and_says_the_same(
    name: str, values: Any, what: Any, options: dict[str, Any]
) -> None:
    messages = []
    for module in (sp, reference):
        with pytest.raises((TypeError, ValueError)) as caught:
            getattr(module, name)(values, what, **options)
        messages.append((caught.type, str(caught.value)))
    assert messages[0] == messages[1]
