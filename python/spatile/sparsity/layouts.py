"""Where the weight matrices of Hugging Face encoders are, and which way round they lie.

Layouts known by name: BERT and RoBERTa (``encoder.layer.N``), DistilBERT (``transformer.layer.N``)
and GPT-2 (``h.N``, whose Conv1D holds (in, out) with Q, K and V fused into one matrix).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "DEFAULT_TARGETS",
    "LayerNames",
    "Matrix",
    "ModelShape",
    "find_matrices",
    "layer_names",
    "model_shape",
]

_BERT = (
    r"re:(^|\.)encoder\.layer\.\d+\.(attention\.self\.(query|key|value)|attention\.output\.dense"
    r"|intermediate\.dense|output\.dense)$"
)
_DISTILBERT = r"re:(^|\.)transformer\.layer\.\d+\.(attention\.(q|k|v|out)_lin|ffn\.lin[12])$"
_GPT2 = r"re:(^|\.)h\.\d+\.(attn\.c_attn\.(query|key|value)|attn\.c_proj|mlp\.c_(fc|proj))$"

#: What a plan prunes unless told otherwise: the matrices inside the encoder's (decoder's) layers.
DEFAULT_TARGETS = (_BERT, _DISTILBERT, _GPT2)

# Embeddings and task heads: small, read by index or seen by the loss directly, never pruned.
_NEVER = re.compile(
    r"(^|\.)(\w*embeddings?\w*|wte|wpe|pooler|classifier|pre_classifier|qa_outputs|score|cls"
    r"|lm_head|vocab_\w+|\w*summary)(\.|$)"
)
_CONV1D = re.compile(
    r"(?P<layer>(^|.*\.)h\.\d+)\.(attn\.(c_attn|c_proj)|mlp\.c_(fc|proj))\.weight\Z"
)


@dataclass(frozen=True)
class Matrix:
    """One weight matrix of a model.

    ``name`` is the parameter's name without ``.weight`` (with ``.query``, ``.key`` or ``.value``
    behind it for a third of a fused one), ``shape`` is (out, in). ``transposed``: the parameter
    holds (in, out). ``rows``: the range of output rows that this matrix takes of the parameter in
    its (out, in) form, or None for all of them.
    """

    name: str
    parameter: str
    shape: tuple[int, int]
    transposed: bool
    rows: tuple[int, int] | None

    @property
    def prunable(self) -> bool:
        """False for embeddings, poolers and task heads."""
        return _NEVER.search(self.name) is None


def find_matrices(named_shapes: Mapping[str, Sequence[int]]) -> list[Matrix]:
    """The 2-D weights among ``named_shapes`` (parameter name → shape), in the order given.

    >>> [m.name for m in find_matrices({"h.0.attn.c_attn.weight": (4, 12), "ln.bias": (4,)})]
    ['h.0.attn.c_attn.query', 'h.0.attn.c_attn.key', 'h.0.attn.c_attn.value']
    """
    found: list[Matrix] = []
    for parameter, shape in named_shapes.items():
        if len(shape) != 2:
            continue
        first, second = int(shape[0]), int(shape[1])
        name = parameter.removesuffix(".weight")
        conv = _CONV1D.match(parameter)
        if conv is None or not _is_conv1d(conv["layer"], named_shapes):
            found.append(Matrix(name, parameter, (first, second), False, None))
        elif name.endswith(".c_attn"):
            found.extend(_split_fused(name, parameter, second, first))
        else:
            found.append(Matrix(name, parameter, (second, first), True, None))
    return found


def _is_conv1d(layer: str, named_shapes: Mapping[str, Sequence[int]]) -> bool:
    # Re-implementations of GPT-2 keep its names but use Linear; the fused matrix of the same layer
    # tells the two apart, because it is three times as wide as it is high.
    fused = named_shapes.get(f"{layer}.attn.c_attn.weight")
    return fused is None or int(fused[1]) == 3 * int(fused[0])


def _split_fused(name: str, parameter: str, out: int, width: int) -> list[Matrix]:
    third = out // 3
    return [
        Matrix(f"{name}.{part}", parameter, (third, width), True, (i * third, (i + 1) * third))
        for i, part in enumerate(("query", "key", "value"))
    ]


@dataclass(frozen=True)
class LayerNames:
    """Names of one layer's matrices, without the model's prefix."""

    query: str
    key: str
    value: str
    output: str
    ffn: tuple[str, str]


_LAYERS: dict[str, tuple[str, LayerNames]] = {
    "bert": (
        "encoder.layer",
        LayerNames(
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            ("intermediate.dense", "output.dense"),
        ),
    ),
    "distilbert": (
        "transformer.layer",
        LayerNames(
            "attention.q_lin",
            "attention.k_lin",
            "attention.v_lin",
            "attention.out_lin",
            ("ffn.lin1", "ffn.lin2"),
        ),
    ),
    "gpt2": (
        "h",
        LayerNames(
            "attn.c_attn.query",
            "attn.c_attn.key",
            "attn.c_attn.value",
            "attn.c_proj",
            ("mlp.c_fc", "mlp.c_proj"),
        ),
    ),
}
_LAYERS["roberta"] = _LAYERS["bert"]


@dataclass(frozen=True)
class ModelShape:
    """What a plan needs to know of a model: its sizes and its layers' matrix names."""

    hidden: int
    heads: int
    neurons: int
    layers: tuple[LayerNames, ...]


def model_shape(config: Any, *, n_layers: int | None = None) -> ModelShape:
    """Read a Hugging Face configuration (the object, or ``config.json`` as a dict).

    ``n_layers`` is how many there were of a model that has lost some (default: as it says).
    Raises ValueError for a model type other than bert, roberta, distilbert and gpt2, and for a
    configuration that lacks a size.
    """

    def get(key: str) -> Any:
        return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)

    model_type = get("model_type")
    if model_type not in _LAYERS:
        raise ValueError(
            f"plan: config.model_type is {model_type!r}, expected one of {sorted(_LAYERS)}"
        )
    hidden = _size(get, "hidden_size", "dim", "n_embd")
    heads = _size(get, "num_attention_heads", "n_heads", "n_head")
    count = n_layers or _size(get, "num_hidden_layers", "n_layers", "n_layer")
    neurons = get("intermediate_size") or get("hidden_dim") or get("n_inner") or 4 * hidden
    layers = tuple(layer_names(model_type, i) for i in range(count))
    return ModelShape(hidden, heads, neurons, layers)


def layer_names(model_type: str, layer: int) -> LayerNames:
    """The matrices of one layer of a bert, roberta, distilbert or gpt2 model."""
    prefix, names = _LAYERS[model_type]
    at = f"{prefix}.{layer}."
    return LayerNames(
        at + names.query,
        at + names.key,
        at + names.value,
        at + names.output,
        (at + names.ffn[0], at + names.ffn[1]),
    )


def _size(get: Callable[[str], Any], *spellings: str) -> int:
    for spelling in spellings:
        value = get(spelling)
        if isinstance(value, int) and value > 0:
            return value
    raise ValueError(f"plan: config has no positive {' or '.join(spellings)}")
