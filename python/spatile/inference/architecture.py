"""What the engine must know of a Hugging Face encoder: sizes, names of weights, kind of head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spatile.sparsity import Structure
from spatile.sparsity.layouts import LayerNames, layer_names
from spatile.sparsity.structure import CONFIG_KEY

__all__ = ["Architecture", "read_architecture", "with_structure"]

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python": "gelu",
    "relu": "relu",
}


@dataclass(frozen=True)
class Architecture:
    """Sizes of a post-LayerNorm encoder and where its weights are.

    ``n_heads`` and ``inner`` are those of the dense model; ``structure`` says what is left of them
    in each of the ``n_layers`` layers.
    """

    family: str
    width: int
    n_layers: int
    n_heads: int
    inner: int
    vocabulary: int
    positions: int
    position_offset: int
    types: int
    norm_eps: float
    activation: str
    embeddings: tuple[str, str, str | None, str]
    head: tuple[str, str, str]
    structure: Structure

    @property
    def head_width(self) -> int:
        """Features of one attention head."""
        return self.width // self.n_heads

    @property
    def max_tokens(self) -> int:
        """The longest input that has positions."""
        return self.positions - self.position_offset

    @property
    def prefix(self) -> str:
        """What task models put before the encoder's own names."""
        return self.family + "."

    def layer(self, i: int) -> LayerNames:
        """The names of the matrices in layer ``i``."""
        return layer_names(self.family, i)

    def norms(self, i: int) -> tuple[str, str]:
        """The names of the LayerNorms after attention and after the FFN in layer ``i``."""
        if self.family == "distilbert":
            base = f"transformer.layer.{i}"
            return f"{base}.sa_layer_norm", f"{base}.output_layer_norm"
        base = f"encoder.layer.{i}"
        return f"{base}.attention.output.LayerNorm", f"{base}.output.LayerNorm"


# (dense module, its activation, output module): what turns the first token into logits.
_HEADS = {
    "bert": ("bert.pooler.dense", "tanh", "classifier"),
    "distilbert": ("pre_classifier", "relu", "classifier"),
    "roberta": ("classifier.dense", "tanh", "classifier.out_proj"),
}
_SPELLINGS = {
    "width": ("hidden_size", "dim"),
    "n_layers": ("num_hidden_layers", "n_layers"),
    "n_heads": ("num_attention_heads", "n_heads"),
    "inner": ("intermediate_size", "hidden_dim"),
    "vocabulary": ("vocab_size",),
    "positions": ("max_position_embeddings",),
}


def _sizes(config: Mapping[str, Any], source: str) -> dict[str, int]:
    sizes = {}
    for field, spellings in _SPELLINGS.items():
        value = next((config[s] for s in spellings if s in config), None)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(
                f"{source}: {' or '.join(spellings)} is {value!r}, expected a positive integer"
            )
        sizes[field] = value
    if sizes["width"] % sizes["n_heads"] != 0:
        raise ValueError(
            f"{source}: hidden size {sizes['width']} is not a multiple of "
            f"{sizes['n_heads']} attention heads"
        )
    return sizes


def _structure(config: Mapping[str, Any], sizes: Mapping[str, int], source: str) -> Structure:
    left = Structure.of_config(config, source=source)
    if left is None:
        return Structure.whole(
            sizes["n_layers"], n_heads=sizes["n_heads"], n_neurons=sizes["inner"]
        )
    for name, found, expected in (
        ("layers", len(left.layers), sizes["n_layers"]),
        ("n_heads", left.n_heads, sizes["n_heads"]),
        ("n_neurons", left.n_neurons, sizes["inner"]),
    ):
        if found != expected:
            raise ValueError(
                f"{source}: {name} of {CONFIG_KEY} is {found}, expected {expected} as the model's"
            )
    return left


def with_structure(config: Mapping[str, Any], structure: Structure) -> dict[str, Any]:
    """The configuration of the model of which ``structure`` is left."""
    count = next(s for s in _SPELLINGS["n_layers"] if s in config)
    return {**config, count: len(structure.layers), CONFIG_KEY: structure.to_dict()}


def _integer(config: Mapping[str, Any], key: str, default: int, least: int, source: str) -> int:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{source}: {key} is {value!r}, expected an integer of at least {least}")
    return value


def _norm_eps(config: Mapping[str, Any], source: str) -> float:
    value = config.get("layer_norm_eps", 1e-12)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{source}: layer_norm_eps is {value!r}, expected a number in [0, 1)")
    return float(value)


def read_architecture(config: Mapping[str, Any], *, source: str = "config.json") -> Architecture:
    """Read a ``config.json``.

    Raises NotImplementedError for a model other than BERT, DistilBERT and RoBERTa (or a variant of
    theirs that the engine does not compute), ValueError for sizes that make no sense.
    """
    family = config.get("model_type")
    if family not in _HEADS:
        raise NotImplementedError(
            f"{source}: model_type is {family!r}, expected one of {', '.join(sorted(_HEADS))}"
        )
    kind = config.get("position_embedding_type") or "absolute"
    if kind != "absolute":
        raise NotImplementedError(
            f"{source}: position_embedding_type is {kind!r}, expected 'absolute'"
        )
    if config.get("is_decoder"):
        raise NotImplementedError(f"{source}: is_decoder is true, expected an encoder")
    name = config.get("hidden_act", config.get("activation", "gelu"))
    if name not in ACTIVATIONS:
        raise NotImplementedError(
            f"{source}: the activation is {name!r}, expected one of {', '.join(ACTIVATIONS)}"
        )
    distilled = family == "distilbert"
    sizes = _sizes(config, source)
    offset = _integer(config, "pad_token_id", 1, 0, source) + 1 if family == "roberta" else 0
    types = None if distilled else "embeddings.token_type_embeddings"
    return Architecture(
        family=family,
        **sizes,
        position_offset=offset,
        types=0 if distilled else _integer(config, "type_vocab_size", 2, 1, source),
        norm_eps=1e-12 if distilled else _norm_eps(config, source),
        activation=ACTIVATIONS[name],
        embeddings=(
            "embeddings.word_embeddings",
            "embeddings.position_embeddings",
            types,
            "embeddings.LayerNorm",
        ),
        head=_HEADS[family],
        structure=_structure(config, sizes, source),
    )
