"""sp.embedding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

import spatile as sp
from spatile import reference

from .arrays import DTYPES, f64, normal, strided_copies, to_torch

pytestmark = pytest.mark.usefixtures("cpu_tier")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("integer", [np.int32, np.int64])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (0,), (2, 0)], ids=str)
@pytest.mark.parametrize("width", [1, 16, 17, 384])
def test_rows_are_copied_exactly(
    width: int, shape: tuple[int, ...], integer: type, dtype: str
) -> None:
    table = normal((50, width), dtype=dtype)
    ids = np.random.default_rng(1).integers(0, 50, shape).astype(integer)
    got = sp.embedding(ids, table)
    assert got.dtype == DTYPES[dtype]
    assert got.shape == (*shape, width)
    assert_array_equal(f64(got), reference.embedding(ids, f64(table)))


def test_first_and_last_row() -> None:
    table = normal((50, 8))
    assert_array_equal(sp.embedding(np.array([0, 49, 49, 0]), table), table[[0, 49, 49, 0]])


@pytest.mark.parametrize("wrong", [-1, 50, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("integer", [np.int32, np.int64])
def test_an_id_outside_the_table_is_refused(integer: type, wrong: int) -> None:
    ids = np.array([3, wrong, 4], integer)
    with pytest.raises(ValueError, match=rf"embedding: ids.*{wrong}"):
        sp.embedding(ids, normal((50, 8)))


def test_an_id_past_32_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="embedding: ids"):
        sp.embedding(np.array([2**32], np.int64), normal((50, 8)))


@pytest.mark.parametrize(
    "layout", ["every other", "column-major", "reversed", "part of a larger array"]
)
def test_strided_and_torch(layout: str) -> None:
    table, ids = normal((50, 33)), np.random.default_rng(1).integers(0, 50, (4, 6))
    expected = table[ids]
    got = sp.embedding(strided_copies(ids)[layout], strided_copies(table)[layout])
    assert_array_equal(got, expected)
    tensor = sp.embedding(torch.from_numpy(ids), to_torch(table))
    assert isinstance(tensor, torch.Tensor)
    assert_array_equal(tensor.numpy(), expected)
