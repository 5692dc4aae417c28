"""From weights and masks to the tables that the C engine runs.

What a plan pruned is removed here for good: a value row that is gone takes its column of W_O (and
what it still adds, its bias, goes into W_O's bias), a dead FFN neuron takes its column of the
second matrix, a head without values takes its rows of W_Q and W_K. Source: E.T. (SC 2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spatile import _core, ops
from spatile.inference.architecture import Architecture
from spatile.inference.weights import EncoderWeights
from spatile.ops.linear import ACTIVATIONS
from spatile.ops.sparse_matrix import STRIP, csr_form, strips_form
from spatile.patterns import Element

__all__ = ["CompiledMatrix", "compile_encoder"]

Array = np.ndarray[Any, Any]

# Below this density a CSR product beats one that also multiplies the zeros, from 16 tokens on: a
# weight of it costs a load of x for each 16 tokens, where dense ones share it (cpu/simd/csr.h).
CSR_DENSITY = 0.3


@dataclass(frozen=True)
class Matrix:
    """A weight (out, in), which of its elements are kept, and its bias."""

    name: str
    w: Array
    keep: Array
    bias: Array
    irregular: bool = False

    def rows(self, index: Array) -> Matrix:
        """These output rows alone."""
        return replace(self, w=self.w[index], keep=self.keep[index], bias=self.bias[index])

    def columns(self, index: Array) -> Matrix:
        """These input columns alone."""
        return replace(self, w=self.w[:, index], keep=self.keep[:, index])

    @property
    def live_rows(self) -> Array:
        """Whether a row keeps anything."""
        return np.asarray(self.keep.any(axis=1))

    @property
    def live_columns(self) -> Array:
        """Whether a column keeps anything."""
        return np.asarray(self.keep.any(axis=0))


@dataclass(frozen=True)
class CompiledMatrix:
    """What one product of the engine costs: multiply-adds per token, as executed, and bytes."""

    layer: int
    part: str
    shape: tuple[int, int]
    multiply_adds: int
    nbytes: int


@dataclass(frozen=True)
class CompiledLayer:
    """Attention's cost is per pair of tokens: ``score_width`` + ``value_width`` multiply-adds.

    ``heads``: those that have values, by their numbers in the dense model.
    """

    matrices: tuple[CompiledMatrix, ...]
    heads: tuple[int, ...]
    score_width: int
    value_width: int
    neurons: int
    merged: bool


def _matrix(weights: EncoderWeights, name: str, shape: tuple[int, int]) -> Matrix:
    w = weights.get(f"{name}.weight", shape)
    bias = weights.get(f"{name}.bias", shape[:1])
    if name not in weights.patterns:
        return Matrix(name, w, np.ones(shape, bool), bias)
    pattern = weights.patterns[name]
    keep = np.asarray(ops.expand_mask(weights.masks[name], shape, pattern=pattern))
    return Matrix(name, np.where(keep, w, np.float32(0)), keep, bias, isinstance(pattern, Element))


def _activate(x: Array, activation: str) -> Array:
    if activation == "relu":
        return np.maximum(x, np.float32(0))
    return np.asarray(ops.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none"))


def _prune_values(v: Matrix, o: Matrix) -> tuple[Matrix, Matrix, Array]:
    """Drop value rows that are gone or unread; the index of those that stay comes third."""
    constant = ~v.live_rows
    folded = o.bias + o.w[:, constant].astype(np.float64) @ v.bias[constant].astype(np.float64)
    o = replace(o, bias=folded.astype(np.float32))
    stay = np.nonzero(v.live_rows & o.live_columns)[0]
    return v.rows(stay), o.columns(stay), stay


def _prune_neurons(up: Matrix, down: Matrix, activation: str) -> tuple[Matrix, Matrix]:
    constant = ~up.live_rows
    value = _activate(up.bias[constant], activation).astype(np.float64)
    folded = down.bias + down.w[:, constant].astype(np.float64) @ value
    down = replace(down, bias=folded.astype(np.float32))
    stay = np.nonzero(up.live_rows & down.live_columns)[0]
    return up.rows(stay), down.columns(stay)


def _merge(v: Matrix, o: Matrix, heads: int) -> tuple[Matrix, Array, Array]:
    """W_V and W_O of each head as one matrix; its live output rows; the bias of the sum."""
    kept = np.nonzero(o.live_rows)[0]
    head_dim = v.w.shape[0] // heads
    merged = [
        o.w[kept, h * head_dim : (h + 1) * head_dim].astype(np.float64)
        @ v.w[h * head_dim : (h + 1) * head_dim].astype(np.float64)
        for h in range(heads)
    ]
    w = np.concatenate(merged).astype(np.float32)
    bias = o.bias + o.w.astype(np.float64) @ v.bias.astype(np.float64)
    matrix = Matrix(v.name, w, np.ones(w.shape, bool), np.zeros(len(w), np.float32))
    return matrix, kept, bias.astype(np.float32)


def _pad_rows(m: Matrix) -> Matrix:
    """Zero rows up to a whole strip, so that the next matrix starts with one of its own."""
    extra = -len(m.w) % STRIP
    return replace(
        m,
        w=np.pad(m.w, ((0, extra), (0, 0))),
        keep=np.pad(m.keep, ((0, extra), (0, 0))),
        bias=np.pad(m.bias, (0, extra)),
    )


def _is_csr(matrices: list[Matrix], compute: str) -> bool:
    if compute == "bfloat16":  # twice the products a cycle make up for the zeros
        return False
    kept = sum(int(m.keep.sum()) for m in matrices)
    total = sum(m.keep.size for m in matrices)
    return all(m.irregular for m in matrices) and kept < CSR_DENSITY * total


class _Product:
    """Matrices stacked on the same input, packed for the engine."""

    def __init__(self, layer: int, part: str, matrices: list[Matrix], compute: str) -> None:
        out = sum(len(m.w) for m in matrices)
        width = matrices[0].w.shape[1]
        self.bias = np.concatenate([m.bias for m in matrices])
        if _is_csr(matrices, compute):
            w, keep = (np.concatenate([getattr(m, f) for m in matrices]) for f in ("w", "keep"))
            form = csr_form(w, keep)
            index = form["index"]
            self.capsule = _core.csr(out, width, index["row_ptr"], index["col"], form["values"])
        else:
            form = _stack(
                [strips_form(m.w, m.keep) for m in matrices], [len(m.w) for m in matrices]
            )
            i = form["index"]
            self.capsule = _core.strips(
                out, width, i["run_ptr"], i["value_ptr"], i["run_start"], i["run_len"],
                form["values"], i["rows"], "float32",
            )  # fmt: skip
        index_arrays = (a for n, a in form["index"].items() if n != "kept" and a is not None)
        width_bytes = 2 if compute == "bfloat16" else 4
        nbytes = form["values"].size * width_bytes + sum(a.nbytes for a in index_arrays)
        self.cost = CompiledMatrix(
            layer, part, (out, width), _executed(form["values"], out), nbytes
        )


def _executed(values: Array, out: int) -> int:
    """Multiply-adds per token as the kernels do them: a stored column is multiplied for all rows of
    its strip, kept or not. Rows that only fill up a last strip are not counted.
    """
    if values.ndim == 1:
        return int(values.size)
    return int(values.size) * out // max(1, -(-out // STRIP) * STRIP)


def _stack(forms: list[dict[str, Any]], outs: list[int]) -> dict[str, Any]:
    """Strip forms one under another; every ``out`` but the last is a multiple of a strip."""
    if len(forms) == 1:
        return forms[0]
    run_base = value_base = row_base = 0
    run_ptr, value_ptr, rows = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)], []
    for form, out in zip(forms, outs, strict=True):
        index = form["index"]
        run_ptr.append(index["run_ptr"][1:] + run_base)
        value_ptr.append(index["value_ptr"][1:] + value_base)
        run_base += len(index["run_start"])
        value_base += len(form["values"])
        own = index["rows"]
        if own is None:
            own = np.arange(-(-out // STRIP) * STRIP, dtype=np.int32)
            own[own >= out] = -1
        rows.append(np.where(own >= 0, own + row_base, -1).astype(np.int32))
        row_base += out
    return {
        "values": np.concatenate([f["values"] for f in forms]),
        "index": {
            "run_ptr": np.concatenate(run_ptr),
            "value_ptr": np.concatenate(value_ptr),
            "run_start": np.concatenate([f["index"]["run_start"] for f in forms]),
            "run_len": np.concatenate([f["index"]["run_len"] for f in forms]),
            "rows": np.concatenate(rows),
        },
    }


@dataclass(frozen=True)
class _Attention:
    q: Matrix
    k: Matrix
    v: Matrix
    o: Matrix | None
    v_width: Array
    merged_row: Array | None
    merged_bias: Array | None
    head: Array


def _attention(weights: EncoderWeights, a: Architecture, i: int, merge: bool) -> _Attention:
    names, heads, head_dim = a.layer(i), len(a.structure.layers[i].heads), a.head_width
    q, k, v = (
        _matrix(weights, n, (heads * head_dim, a.width))
        for n in (names.query, names.key, names.value)
    )
    o = _matrix(weights, names.output, (a.width, heads * head_dim))
    if merge:
        v, kept, bias = _merge(v, o, heads)
        v_width = np.full(heads, len(kept), np.int32)
        if len(kept) == 0:
            v_width = v_width[:0]
        merged_row: Array | None = kept.astype(np.int32)
        projected, merged_bias = None, bias
    else:
        v, o, stay = _prune_values(v, o)
        v_width = np.bincount(stay // head_dim, minlength=heads).astype(np.int32)
        merged_row, projected, merged_bias = None, o, None
    live = np.nonzero(v_width)[0]
    rows = (live[:, None] * head_dim + np.arange(head_dim)).ravel()
    return _Attention(
        q.rows(rows), k.rows(rows), v, projected, v_width[live], merged_row, merged_bias,
        np.array(a.structure.layers[i].heads, np.int32)[live],
    )  # fmt: skip


def _compile_layer(
    weights: EncoderWeights, a: Architecture, i: int, merge: bool, compute: str
) -> tuple[tuple[Any, ...], CompiledLayer]:
    names = a.layer(i)
    part = _attention(weights, a, i, merge)
    heads, head_dim, neurons = len(part.v_width), a.head_width, len(a.structure.layers[i].neurons)
    q, k, v = _pad_rows(part.q), _pad_rows(part.k), part.v
    qkv = _Product(i, "qkv", [q, k, v], compute)
    o = None if part.o is None else _Product(i, "output", [part.o], compute)
    up_matrix, down_matrix = _prune_neurons(
        _matrix(weights, names.ffn[0], (neurons, a.width)),
        _matrix(weights, names.ffn[1], (a.width, neurons)),
        a.activation,
    )
    up = _Product(i, "up", [up_matrix], compute)
    down = _Product(i, "down", [down_matrix], compute)
    first = np.arange(heads, dtype=np.int32) * head_dim
    v_row = (np.cumsum(part.v_width) - part.v_width).astype(np.int32)
    norms = [weights.get(f"{n}.{p}", (a.width,)) for n in a.norms(i) for p in ("weight", "bias")]
    fields = (
        qkv.capsule, qkv.bias,
        None if o is None else o.capsule, None if o is None else o.bias,
        up.capsule, up.bias, down.capsule, down.bias,
        heads, head_dim, len(q.w), ACTIVATIONS[a.activation], 1.0 / math.sqrt(head_dim),
        first, (first + len(q.w)).astype(np.int32),
        (v_row + len(q.w) + len(k.w)).astype(np.int32), part.v_width.astype(np.int32),
        part.merged_row, part.merged_bias, *norms, part.head,
    )  # fmt: skip
    products = [p.cost for p in (qkv, o, up, down) if p is not None]
    layer = CompiledLayer(
        tuple(products),
        tuple(part.head.tolist()),
        heads * head_dim,
        int(part.v_width.sum()),
        len(up_matrix.w),
        part.o is None,
    )
    return fields, layer


def _embeddings(weights: EncoderWeights, a: Architecture) -> tuple[Array | None, ...]:
    word, position, types, norm = a.embeddings
    return (
        weights.get(f"{word}.weight", (a.vocabulary, a.width)),
        weights.get(f"{position}.weight", (a.positions, a.width)),
        None if types is None else weights.get(f"{types}.weight", (a.types, a.width)),
        weights.get(f"{norm}.weight", (a.width,)),
        weights.get(f"{norm}.bias", (a.width,)),
    )


def compile_encoder(
    weights: EncoderWeights,
    architecture: Architecture,
    precompute: tuple[bool, ...] = (),
    compute: str = "float32",
    gpu: int | None = None,
) -> tuple[_core.Encoder, list[CompiledLayer]]:
    """The engine's object and what each layer costs.

    ``precompute`` says for each layer whether W_V and W_O are merged (empty: nowhere), ``compute``
    ("float32" or "bfloat16") what products are done in, ``gpu`` the number of the one that it runs
    on, if any. Raises ValueError where weights are missing or of other shapes than the architecture
    says.
    """
    if precompute and len(precompute) != architecture.n_layers:
        raise ValueError(
            f"{weights.source}: precompute has {len(precompute)} layers, "
            f"expected {architecture.n_layers}"
        )
    beyond = architecture.layer(architecture.n_layers).query
    if f"{beyond}.weight" in weights.tensors:
        raise ValueError(
            f"{weights.source}: {beyond} is there, expected {architecture.n_layers} layers as the "
            f"configuration says"
        )
    fields, layers = [], []
    for i in range(architecture.n_layers):
        field, layer = _compile_layer(
            weights, architecture, i, bool(precompute and precompute[i]), compute
        )
        fields.append(field)
        layers.append(layer)
    engine = _core.Encoder(
        architecture.width, architecture.n_heads, architecture.norm_eps,
        _embeddings(weights, architecture), fields, compute == "bfloat16", gpu,
    )  # fmt: skip
    return engine, layers
