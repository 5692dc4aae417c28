"""Element-wise sparse weights: products of every number of tokens, widths of many blocks."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

import spatile as sp
from spatile import reference

from .arrays import normal

pytestmark = pytest.mark.usefixtures("cpu_tier")


@pytest.mark.parametrize("sparsity", [0.0, 0.6, 0.97])
@pytest.mark.parametrize("tokens", [1, 15, 17, 33, 63, 65, 129, 190, 241])
def test_every_number_of_panels(tokens: int, sparsity: float) -> None:
    x, w, bias = normal((tokens, 700)), normal((83, 700), seed=1), normal((83,), seed=2)
    residual = normal((tokens, 83), seed=3)
    mask = sp.prune_mask(w, pattern="element", sparsity=sparsity)
    mask[40:44] = False  # rows without a weight
    packed = sp.pack(w, mask, pattern="element")
    assert packed.is_csr
    options = {"bias": bias, "activation": "gelu", "residual": residual}
    got = sp.linear(x, packed, **options)
    expected = reference.linear(x, np.where(mask, w, 0), **options)
    assert_allclose(got, expected, rtol=1e-4, atol=2e-4)


def test_a_matrix_without_columns_gives_the_bias() -> None:
    w, bias = np.zeros((5, 0), np.float32), normal((5,))
    y = sp.linear(np.zeros((3, 0), np.float32), sp.pack(w, pattern="element"), bias=bias)
    assert_allclose(y, np.tile(bias, (3, 1)))
