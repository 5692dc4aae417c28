"""The float64 definitions against PyTorch in float64: the anchor of every other op test."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from spatile import reference

RNG = np.random.default_rng(20)


def tensor(x: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(x), dtype=torch.float64)


def visible(b: int, h: int, sq: int, sk: int, case: dict[str, Any]) -> np.ndarray:
    """The visible pairs, element by element, from the rules' own words."""
    seen = np.ones((b, h, sq, sk), bool)
    for index in np.ndindex(b, h, sq, sk):
        n, _, i, j = index
        shift = sk - sq
        if case.get("causal") and not j <= i + shift:
            seen[index] = False
        if "window" in case:
            left, right = case["window"]
            if left is not None and not i + shift - left <= j:
                seen[index] = False
            if right is not None and not j <= i + shift + right:
                seen[index] = False
        if "lengths" in case and (j >= case["lengths"][n] or i >= case["lengths"][n]):
            seen[index] = False
    if "mask" in case:
        seen &= np.broadcast_to(case["mask"], seen.shape)
    return seen


ATTENTION = {
    "plain": {},
    "cross": {"sq": 5, "sk": 9},
    "more queries than keys": {"sq": 9, "sk": 5, "causal": True},
    "grouped": {"h": 6, "hk": 2},
    "one kv head": {"h": 4, "hk": 1, "causal": True},
    "wide values": {"d": 8, "dv": 5},
    "causal": {"causal": True},
    "causal, bottom right": {"causal": True, "sq": 4, "sk": 7},
    "window": {"window": (2, 1)},
    "window, open left": {"window": (None, 0), "sq": 3, "sk": 6},
    "window, open right": {"window": (1, None)},
    "window and causal": {"window": (2, 2), "causal": True},
    "mask per head": {"mask": RNG.random((2, 4, 7, 7)) < 0.6},
    "mask of keys": {"mask": RNG.random((2, 1, 1, 7)) < 0.6},
    "mask of queries": {"mask": np.array([1, 0, 1, 1, 0, 1, 1], bool).reshape(1, 1, 7, 1)},
    "bias": {"bias": RNG.standard_normal((2, 4, 7, 7))},
    "bias shared": {"bias": RNG.standard_normal((1, 4, 1, 7))},
    "bias and causal": {"bias": RNG.standard_normal((1, 1, 7, 7)), "causal": True},
    "lengths": {"lengths": [7, 3]},
    "lengths, one empty": {"lengths": [0, 4], "causal": True},
    "lengths and window": {"lengths": [5, 7], "window": (1, 1), "h": 4, "hk": 2},
    "scale": {"scale": 0.7},
}
CALL_KEYS = ("mask", "lengths", "bias", "causal", "window", "scale")


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_and_gradients_equal_torch(name: str) -> None:
    case = ATTENTION[name]
    b, h, d = 2, case.get("h", 4), case.get("d", 6)
    sq, sk, hk, dv = (
        case.get("sq", 7),
        case.get("sk", 7),
        case.get("hk", h),
        case.get("dv", d),
    )
    rng = np.random.default_rng(1)
    q, k = rng.standard_normal((b, sq, h, d)), rng.standard_normal((b, sk, hk, d))
    v, grad = rng.standard_normal((b, sk, hk, dv)), rng.standard_normal((b, sq, h, dv))
    arguments = {key: case[key] for key in CALL_KEYS if key in case}

    leaves = [tensor(x).requires_grad_() for x in (q, k, v)]
    bias = tensor(case["bias"]).requires_grad_() if "bias" in case else None
    heads = [x.transpose(1, 2) for x in leaves]
    keys, values = (x.repeat_interleave(h // hk, dim=1) for x in heads[1:])
    seen = visible(b, h, sq, sk, case)
    additive = tensor(np.where(seen, 0.0, -1e300))
    live = torch.tensor(seen.any(axis=-1, keepdims=True))
    scale = case.get("scale", 1 / math.sqrt(d))
    mask = additive if bias is None else additive + bias
    expected = torch.nn.functional.scaled_dot_product_attention(
        heads[0], keys, values, attn_mask=mask, scale=scale
    )
    expected = torch.where(live, expected, torch.zeros(())).transpose(1, 2)
    (expected * tensor(grad)).sum().backward()

    result = reference.attention(q, k, v, **arguments, return_lse=True, return_importance=True)
    assert_allclose(result.out, expected.detach(), atol=1e-13)
    scores = (heads[0] * scale) @ keys.transpose(-1, -2) + mask
    p = torch.where(live, scores.softmax(-1), torch.zeros(())).detach()
    lse = torch.where(live[..., 0], scores.logsumexp(-1), -torch.inf).detach()
    assert_allclose(result.lse, lse, atol=1e-13)
    assert_allclose(result.token_importance, p.sum((1, 2)), atol=1e-13)
    assert_allclose(result.head_importance, expected.detach().abs().sum((1, 3)), atol=1e-12)

    got = reference.attention_backward(
        grad, q, k, v, result.out, result.lse, **arguments, need_bias=bias is not None
    )
    for ours, leaf in zip((got.q, got.k, got.v), leaves, strict=True):
        assert_allclose(ours, leaf.grad, atol=1e-12)
    if bias is not None:
        assert got.bias.shape == bias.shape
        assert_allclose(got.bias, bias.grad, atol=1e-12)


def test_attention_packed_is_each_sequence_alone() -> None:
    rng = np.random.default_rng(2)
    offsets, kv_offsets = [0, 3, 3, 7, 9], [0, 2, 5, 5, 11]
    q, k = rng.standard_normal((9, 4, 5)), rng.standard_normal((11, 2, 5))
    v, grad = rng.standard_normal((11, 2, 3)), rng.standard_normal((9, 4, 3))
    packing = {"offsets": offsets, "kv_offsets": kv_offsets, "causal": True}
    result = reference.attention(q, k, v, **packing, return_lse=True, return_importance=True)
    grads = reference.attention_backward(grad, q, k, v, result.out, result.lse, **packing)
    for n in range(4):
        a, b = slice(*offsets[n : n + 2]), slice(*kv_offsets[n : n + 2])
        alone = reference.attention(
            q[None, a],
            k[None, b],
            v[None, b],
            causal=True,
            return_lse=True,
            return_importance=True,
        )
        assert_allclose(result.out[a], alone.out[0])
        assert_allclose(result.lse[:, a], alone.lse[0])
        assert_allclose(result.token_importance[b], alone.token_importance[0])
        assert_allclose(result.head_importance[n], alone.head_importance[0])
        back = reference.attention_backward(
            grad[None, a],
            q[None, a],
            k[None, b],
            v[None, b],
            alone.out,
            alone.lse,
            causal=True,
        )
        assert_allclose(grads.q[a], back.q[0])
        assert_allclose(grads.k[b], back.k[0])
        assert_allclose(grads.v[b], back.v[0])


def test_attention_dropout_is_a_mask_on_the_probabilities() -> None:
    rng = np.random.default_rng(3)
    q, k, v, grad = (rng.standard_normal((2, 6, 3, 4)) for _ in range(4))
    leaves = [tensor(x).requires_grad_() for x in (q, k, v)]
    heads = [x.transpose(1, 2) for x in leaves]
    p = (heads[0] / 2.0 @ heads[1].transpose(-1, -2)).softmax(-1)
    kept = np.stack(
        [reference.dropout_keep(3, 6, 6, dropout=0.3, seed=9, sequence=n) for n in range(2)]
    )
    assert 0 < kept.sum() < kept.size
    expected = (p * tensor(kept) / 0.7 @ heads[2]).transpose(1, 2)
    (expected * tensor(grad)).sum().backward()
    arguments = {"dropout": 0.3, "seed": 9}
    result = reference.attention(q, k, v, **arguments, return_lse=True, return_importance=True)
    assert_allclose(result.out, expected.detach(), atol=1e-13)
    assert_allclose(result.token_importance, p.detach().sum((1, 2)), atol=1e-13)
    got = reference.attention_backward(grad, q, k, v, result.out, result.lse, **arguments)
    for ours, leaf in zip((got.q, got.k, got.v), leaves, strict=True):
        assert_allclose(ours, leaf.grad, atol=1e-12)


@pytest.mark.parametrize(
    ("counter", "seed", "words"),
    [
        ([0, 0, 0, 0], 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, 0xFFFFFFFFFFFFFFFF, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0A4093822,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_vectors(counter: list[int], seed: int, words: str) -> None:
    """The known answers that Random123 ships for philox4x32 with ten rounds."""
    assert " ".join(f"{int(w):08x}" for w in reference.philox4x32(counter, seed)) == words


def test_dropout_keep_places_its_words() -> None:
    kept = reference.dropout_keep(3, 4, 10, dropout=0.4, seed=(5 << 32) | 6, sequence=2)
    for head, i, j in np.ndindex(3, 4, 10):
        word = reference.philox4x32([j >> 2, i, head, 2], (5 << 32) | 6)[j & 3]
        assert kept[head, i, j] == (word >= math.floor(0.4 * 2**32))


@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "relu", "tanh"])
def test_linear_equals_torch(activation: str | None) -> None:
    rng = np.random.default_rng(4)
    x, w, bias = (
        rng.standard_normal((2, 3, 5)),
        rng.standard_normal((4, 5)),
        rng.standard_normal(4),
    )
    residual = rng.standard_normal((2, 3, 4))
    functions: dict[str | None, Any] = {
        None: lambda y: y,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda y: torch.nn.functional.gelu(y, approximate="tanh"),
        "relu": torch.relu,
        "tanh": torch.tanh,
    }
    product = torch.nn.functional.linear(tensor(x), tensor(w), tensor(bias))
    expected = functions[activation](product) + tensor(residual)
    ours = reference.linear(x, w, bias=bias, activation=activation, residual=residual)
    assert_allclose(ours, expected, atol=1e-13)


def test_linear_backward_equals_torch() -> None:
    rng = np.random.default_rng(5)
    x, w, bias = (
        tensor(rng.standard_normal(s)).requires_grad_() for s in ((2, 3, 5), (4, 5), (4,))
    )
    grad = rng.standard_normal((2, 3, 4))
    (torch.nn.functional.linear(x, w, bias) * tensor(grad)).sum().backward()
    got = reference.linear_backward(grad, x.detach().numpy(), w.detach().numpy())
    for ours, leaf in zip(got, (x, w, bias), strict=True):
        assert_allclose(ours, leaf.grad, atol=1e-13)
    only = reference.linear_backward(grad, x.detach().numpy(), w.detach().numpy(), need=("x",))
    assert only.w is None
    assert only.bias is None


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_equals_torch(approximate: str) -> None:
    x = np.linspace(-12, 12, 301)
    expected = torch.nn.functional.gelu(tensor(x), approximate=approximate)
    assert_allclose(reference.gelu(x, approximate=approximate), expected, atol=1e-14)


def test_layer_norm_equals_torch() -> None:
    rng = np.random.default_rng(6)
    x, residual = rng.standard_normal((2, 3, 7)), rng.standard_normal((2, 3, 7))
    weight, bias = rng.standard_normal(7), rng.standard_normal(7)
    expected = torch.nn.functional.layer_norm(
        tensor(x + residual), (7,), tensor(weight), tensor(bias), eps=1e-5
    )
    ours = reference.layer_norm(x, weight, bias, eps=1e-5, residual=residual)
    assert_allclose(ours, expected, atol=1e-13)


def test_softmax_equals_torch_and_an_empty_row_is_zero() -> None:
    x = np.random.default_rng(7).standard_normal((3, 4))
    x[0, 1] = -np.inf
    x[2] = -np.inf
    ours = reference.softmax(x)
    assert_allclose(ours[:2], tensor(x[:2]).softmax(-1), atol=1e-15)
    assert_array_equal(ours[2], np.zeros(4))


def test_group_lasso_gradient_is_torchs_of_the_penalty() -> None:
    rng = np.random.default_rng(8)
    w, beta = rng.standard_normal((5, 7)), rng.random((3, 3))
    leaf = tensor(w).requires_grad_()
    blocks = [leaf[2 * i : 2 * i + 2, 3 * j : 3 * j + 3] for i in range(3) for j in range(3)]
    norms = torch.stack([x.square().sum().sqrt() for x in blocks])
    penalty = 0.3 * (tensor(beta).ravel() * norms).sum()
    penalty.backward()
    tile = "tile:2x3"
    assert_allclose(reference.group_norms(w, pattern=tile).ravel(), norms.detach())
    assert_allclose(0.3 * reference.group_lasso(w, pattern=tile, beta=beta), penalty.item())
    ours = reference.group_lasso_grad(w, pattern=tile, beta=beta, strength=0.3)
    assert_allclose(ours, leaf.grad, atol=1e-15)


def test_group_shrink_minimises_its_proximal_objective() -> None:
    """The argmin of ½‖u − w‖² + strength·Σβ‖u_g‖: nothing near the result is lower."""
    rng = np.random.default_rng(9)
    w, beta = rng.standard_normal((4, 4)) * 0.3, rng.random((2, 2))
    shrunk = reference.group_shrink_(w.copy(), pattern="tile:2x2", beta=beta, strength=0.5)

    def objective(u: np.ndarray) -> float:
        penalty = reference.group_lasso(u, pattern="tile:2x2", beta=beta)
        return 0.5 * float(((u - w) ** 2).sum()) + 0.5 * penalty

    best = objective(shrunk)
    for _ in range(300):
        assert objective(shrunk + 1e-3 * rng.standard_normal(w.shape)) > best


def test_prune_mask_counts_and_scores_by_hand() -> None:
    w = np.array([[3.0, 0.0, 1.0], [4.0, 0.0, 1.0], [1.0, 1.0, 1.5]])
    # Tiles 2x2: norms 5, √2 over 2 elements (1 each), √2 over 2 (1 each), 1.5 over 1.
    assert reference.prune_mask(w, pattern="tile:2x2", sparsity=0.5).tolist() == [
        [True, False],
        [False, True],
    ]
    assert reference.prune_mask(w, pattern="tile:2x2", sparsity=0.25).tolist() == [
        [True, True],
        [False, True],
    ]
    assert reference.prune_mask(w, pattern="column", sparsity=0.99).tolist() == [
        [True, False, False]
    ]
    first, second = reference.prune_mask(
        [w, w], pattern=["row", "row"], sparsity=0.5, scope="global"
    )
    assert first.ravel().tolist() == [True, True, False]
    assert second.ravel().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("n", "sparsity", "pruned"),
    [(4, 0.5, 2), (5, 0.5, 3), (5, 0.99, 4), (1, 0.9, 0), (10, 0.04, 0), (10, 0.05, 1)],
)
def test_prune_mask_rounds_half_up_and_keeps_one(n: int, sparsity: float, pruned: int) -> None:
    w = np.random.default_rng(10).standard_normal((n, 3))
    assert (~reference.prune_mask(w, pattern="row", sparsity=sparsity)).sum() == pruned


def test_topk_is_a_stable_sort() -> None:
    got = reference.topk([1.0, 3.0, 3.0, 2.0, 3.0], 2)
    assert got.indices.tolist() == [1, 2]
    packed = reference.topk([5.0, 4.0, 9.0, 9.0, 9.0], [1, 2], offsets=[0, 2, 5])
    assert packed.indices.tolist() == [0, 2, 3]
    assert reference.topk([[1.0, 2.0], [4.0, 3.0]], 1).values.tolist() == [[2.0], [4.0]]


def test_embedding_equals_torch() -> None:
    table = np.random.default_rng(11).standard_normal((5, 3))
    ids = np.array([[4, 0], [2, 2]])
    expected = torch.nn.functional.embedding(torch.tensor(ids), tensor(table))
    assert_array_equal(reference.embedding(ids, table), expected)
    with pytest.raises(ValueError, match="embedding: ids"):
        reference.embedding([5], table)
