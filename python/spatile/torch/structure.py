"""Models that have lost heads, neurons and layers: smaller PyTorch modules in the same places."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spatile.sparsity import Structure
from spatile.sparsity.layouts import LayerNames, layer_names
from spatile.sparsity.structure import CONFIG_KEY, Cut, layer_cuts
from spatile.torch.parameters import unwrap
from spatile.torch.sparse_linear import SparseLinear

__all__ = ["EncoderLayers", "apply_structure", "encoder_layers", "structure_of"]

_PLACES = {
    "bert": "encoder.layer",
    "roberta": "encoder.layer",
    "distilbert": "transformer.layer",
}


@dataclass(frozen=True)
class EncoderLayers:
    """Where a model's encoder layers are."""

    family: str
    prefix: str
    modules: nn.ModuleList
    config: Any

    def name(self, layer: int) -> str:
        """The full name of the layer of this number."""
        return f"{self.prefix}{_PLACES[self.family]}.{layer}"

    def matrices(self, layer: int) -> LayerNames:
        """The full names of its matrices."""
        plain = layer_names(self.family, layer)
        q, k, v, o, up, down = (
            self.prefix + n for n in (plain.query, plain.key, plain.value, plain.output, *plain.ffn)
        )
        return LayerNames(q, k, v, o, (up, down))

    def part(self, layer: int, name: str) -> nn.Linear:
        """The module of the layer of this number that the full ``name`` means."""
        module: nn.Linear = self.modules[layer].get_submodule(name[len(self.name(layer)) + 1 :])
        return module


def encoder_layers(model: nn.Module) -> EncoderLayers:
    """The encoder layers of a BERT, RoBERTa or DistilBERT.

    Raises NotImplementedError for another model, or one whose layers are not made of ``nn.Linear``,
    ValueError for one that has none or two encoders.
    """
    inner = unwrap(model)
    config = getattr(inner, "config", None)
    family = getattr(config, "model_type", None)
    if family not in _PLACES:
        raise NotImplementedError(
            f"structure: model is a {type(inner).__name__} of type {family!r}, expected one of "
            f"{', '.join(sorted(_PLACES))}"
        )
    place = _PLACES[family]
    found = [
        (name, module)
        for name, module in inner.named_modules()
        if f".{name}".endswith(f".{place}") and isinstance(module, nn.ModuleList) and len(module)
    ]
    if len(found) != 1:
        raise ValueError(f"structure: model has {len(found)} lists {place}, expected one")
    name, modules = found[0]
    layers = EncoderLayers(family, name.removesuffix(place), modules, config)
    for i in range(len(modules)):
        n = layers.matrices(i)
        for matrix in (n.query, n.key, n.value, n.output, *n.ffn):
            if not isinstance(layers.part(i, matrix), nn.Linear):
                raise NotImplementedError(
                    f"structure: {matrix} is a {type(layers.part(i, matrix)).__name__}, "
                    f"expected nn.Linear"
                )
    return layers


def structure_of(model: nn.Module) -> Structure:
    """What the modules of ``model`` hold now of the dense model that it was.

    A checkpoint of a smaller model that ``from_pretrained`` has just loaded holds all heads and
    neurons of its layers, zeros for those that are gone, until :func:`apply_structure` cuts them.

    Raises as :func:`apply_structure` does, and ValueError where module shapes and configuration
    don't fit together.
    """
    layers = encoder_layers(model)
    config, source = layers.config, f"{type(unwrap(model)).__name__}.config"
    n_neurons = getattr(config, "intermediate_size", None) or getattr(config, "hidden_dim", None)
    count, heads = len(layers.modules), int(config.num_attention_heads)
    whole = Structure.whole(count, n_heads=heads, n_neurons=int(n_neurons or 0))
    recorded = Structure.of_config(config, source=source)
    if recorded is not None:
        uncut = whole.layers[0]
        if len(recorded.layers) != count:
            raise ValueError(
                f"structure: model has {count} layers, expected {len(recorded.layers)} as {source} "
                f"says"
            )
        whole = recorded.with_layers(
            type(uncut)(kept.layer, uncut.heads, uncut.neurons) for kept in recorded.layers
        )
    for structure in (whole, recorded):
        if structure is not None and _shapes_fit(layers, structure):
            return structure
    raise ValueError(f"structure: the shapes of the model's layers are not those of {source}")


def _head_width(layers: EncoderLayers) -> int:
    return int(layers.config.hidden_size) // int(layers.config.num_attention_heads)


def _shapes_fit(layers: EncoderLayers, structure: Structure) -> bool:
    width = _head_width(layers)
    for i, kept in enumerate(structure.layers):
        names = layers.matrices(i)
        if layers.part(i, names.query).out_features != len(kept.heads) * width:
            return False
        if layers.part(i, names.ffn[0]).out_features != len(kept.neurons):
            return False
    return True


def apply_structure(
    model: nn.Module,
    structure: Structure | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
) -> Structure:
    """Cut ``model`` down, in place, to what ``structure`` keeps; returns the structure it has then.

    Linear layers become smaller ones with new parameters, dropped layers leave the model, and its
    configuration (``num_hidden_layers``, ``spatile_structure``) says so. None: what the
    configuration of a loaded checkpoint says is gone, which is zeros there; a dense model stays as
    it is. A structure counts from the dense model, also where some of it is gone already.

    ``optimizer``: its parameters are exchanged for the new ones, with what it knows of them cut
    likewise, and those of dropped layers leave it. Without, make the optimizer afterwards: one made
    before goes on with parameters that are no longer the model's. Gradients are dropped. A
    :class:`Pruner` is to be made afterwards too.

    ``state_dict()`` has the dense model's shapes, zeros for heads and neurons that are gone, and
    ``load_state_dict()`` takes those as well as the smaller ones: what ``save_pretrained`` writes
    is a checkpoint that ``from_pretrained`` reads, with the same outputs.

    Raises NotImplementedError for a model other than BERT, RoBERTa and DistilBERT, ValueError for a
    structure that keeps what the model no longer has, a model inside DistributedDataParallel, one
    whose layers are sparse (:func:`densify` them first), and, for None, weights other than zero in
    what is gone.

    >>> from transformers import BertConfig, BertModel
    >>> from spatile.sparsity import LayerStructure
    >>> model = BertModel(BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    ...                              intermediate_size=64, vocab_size=9))
    >>> small = LayerStructure(1, heads=(0,), neurons=tuple(range(0, 64, 2)))
    >>> _ = apply_structure(model, structure_of(model).with_layers([small]))
    >>> model.config.num_hidden_layers, model.encoder.layer[0].intermediate.dense.out_features
    (1, 32)
    >>> model.state_dict()["encoder.layer.0.intermediate.dense.weight"].shape
    torch.Size([64, 32])
    """
    inner = unwrap(model)
    if any(
        isinstance(m, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        for m in (model, getattr(model, "_orig_mod", None))
    ):
        raise ValueError(
            "apply_structure: model is inside DistributedDataParallel, expected it before wrapping"
        )
    layers, present = encoder_layers(inner), structure_of(inner)
    for name, module in layers.modules.named_modules():
        if isinstance(module, SparseLinear):
            raise ValueError(f"apply_structure: {name} is sparse, expected densify() before")
    wanted = Structure.of_config(layers.config) if structure is None else structure
    if wanted is None or wanted == present:
        return present
    if not wanted.fits_into(present):
        raise ValueError(
            "apply_structure: structure keeps heads, neurons or layers that model does not have"
        )
    place = {kept.layer: i for i, kept in enumerate(present.layers)}
    kept_at = [place[kept.layer] for kept in wanted.layers]
    replaced: dict[nn.Parameter, tuple[nn.Parameter, Cut] | None] = {}
    for module, parameter, cut in _relative_cuts(layers, present, wanted, kept_at):
        if structure is None:
            _check_gone(module, parameter, cut)
        old = getattr(module, parameter)
        replaced[old] = (
            nn.Parameter(_select(old.detach(), cut), requires_grad=old.requires_grad),
            cut,
        )
    for i, layer in enumerate(layers.modules):
        if i not in kept_at:
            replaced.update(dict.fromkeys(layer.parameters()))
    _replace(layers, wanted, kept_at, replaced)
    _configure(inner, layers, wanted)
    if optimizer is not None:
        _tell(optimizer, replaced)
    return wanted


def _cuts(
    layers: EncoderLayers, structure: Structure, i: int, at: int
) -> Iterator[tuple[nn.Linear, str, Cut]]:
    """How the modules of the layer now at place ``at`` are cut, the ``i``-th of ``structure``."""
    cuts = layer_cuts(
        layers.matrices(at), structure.layers[i], structure, head_width=_head_width(layers)
    )
    for full_name, cut in cuts.items():
        name, _, parameter = full_name.rpartition(".")
        module = layers.part(at, name)
        if getattr(module, parameter) is not None:
            yield module, parameter, cut


def _relative_cuts(
    layers: EncoderLayers, present: Structure, wanted: Structure, kept_at: list[int]
) -> Iterator[tuple[nn.Linear, str, Cut]]:
    """How the parameters as they are now are to be cut, where they are."""
    for i, at in enumerate(kept_at):
        now = {(m, p): cut.kept for m, p, cut in _cuts(layers, present, at, at)}
        for module, parameter, cut in _cuts(layers, wanted, i, at):
            where = {feature: j for j, feature in enumerate(now[module, parameter])}
            if len(cut.kept) < len(where):
                yield (
                    module,
                    parameter,
                    Cut(cut.axis, tuple(where[f] for f in cut.kept), len(where)),
                )


def _check_gone(module: nn.Linear, parameter: str, cut: Cut) -> None:
    # Without its columns of the second matrix, nobody reads a head or a neuron.
    if cut.axis == 1:
        gone = sorted(set(range(cut.full)) - set(cut.kept))
        if bool(getattr(module, parameter)[:, gone].any()):
            raise ValueError(
                f"apply_structure: the model has weights in what {CONFIG_KEY} of its configuration "
                f"says is gone, expected zeros; set it to None to keep them"
            )


def _replace(
    layers: EncoderLayers,
    wanted: Structure,
    kept_at: list[int],
    replaced: dict[nn.Parameter, tuple[nn.Parameter, Cut] | None],
) -> None:
    """Put the new parameters in, and the layers that stay into a row."""
    width = _head_width(layers)
    for i, at in enumerate(kept_at):
        for module, parameter, cut in _cuts(layers, wanted, i, at):
            new = replaced.get(getattr(module, parameter))
            if new is not None:
                setattr(module, parameter, new[0])
            _remember(module, parameter, cut)
        heads = len(wanted.layers[i].heads)
        for module in layers.modules[at].modules():
            _set_known(module, "layer_idx", i)
        _set_heads(layers, at, heads, heads * width)
    stay = [layers.modules[at] for at in kept_at]
    del layers.modules[:]
    layers.modules.extend(stay)


def _set_heads(layers: EncoderLayers, at: int, heads: int, features: int) -> None:
    names = layers.matrices(at)
    for name in (names.query, names.key, names.value, names.ffn[0]):
        module = layers.part(at, name)
        module.out_features = module.weight.shape[0]
    for name in (names.output, names.ffn[1]):
        module = layers.part(at, name)
        module.in_features = module.weight.shape[1]
    owner = names.query.rpartition(".")[0]
    attention = layers.part(at, owner)
    for attribute, value in (
        ("num_attention_heads", heads),
        ("all_head_size", features),
        ("n_heads", heads),
        ("dim", features),
    ):
        _set_known(attention, attribute, value)


def _set_known(module: nn.Module, attribute: str, value: int) -> None:
    if isinstance(getattr(module, attribute, None), int):
        setattr(module, attribute, value)


def _configure(model: nn.Module, layers: EncoderLayers, structure: Structure) -> None:
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    for config in configs.values():
        if getattr(config, "model_type", None) in _PLACES:
            config.num_hidden_layers = len(structure.layers)
            setattr(config, CONFIG_KEY, structure.to_dict())
    # DistilBERT's list of layers is in a module that knows its length.
    owner = f"{layers.prefix}{_PLACES[layers.family]}".rpartition(".")[0]
    _set_known(model.get_submodule(owner), "n_layers", len(structure.layers))


def _tell(
    optimizer: torch.optim.Optimizer,
    replaced: dict[nn.Parameter, tuple[nn.Parameter, Cut] | None],
) -> None:
    """Exchange the parameters that an optimizer knows, and cut what it knows of them."""
    for group in optimizer.param_groups:
        kept: list[nn.Parameter] = []
        for old in group["params"]:
            if old not in replaced:
                kept.append(old)
                continue
            state, new = optimizer.state.pop(old, None), replaced[old]
            if new is None:
                continue
            kept.append(new[0])
            if state is not None and _can_be_cut(state, old):
                optimizer.state[new[0]] = {
                    key: _select(value, new[1]) if _is_like(value, old) else value
                    for key, value in state.items()
                }
        group["params"] = kept


def _is_like(value: Any, parameter: nn.Parameter) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == parameter.shape


def _can_be_cut(state: dict[str, Any], parameter: nn.Parameter) -> bool:
    """False for sums over rows or columns, which can only begin anew."""
    return all(
        not isinstance(value, torch.Tensor) or value.ndim == 0 or _is_like(value, parameter)
        for value in state.values()
    )


# ---- checkpoints --------------------------------------------------------------------------------


def _remember(module: nn.Linear, parameter: str, cut: Cut) -> None:
    """Have the module's ``state_dict`` hold the dense model's shapes."""
    if len(cut.kept) == cut.full:
        return
    known: dict[str, Cut] | None = module.__dict__.get("_spatile_cuts")
    if known is None:
        known = module.__dict__["_spatile_cuts"] = {}
        module.register_state_dict_post_hook(_expand)
        module.register_load_state_dict_pre_hook(_shorten)
    known[parameter] = cut


def _expand(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for parameter, cut in module.__dict__["_spatile_cuts"].items():
        kept = state.get(prefix + parameter)
        if kept is not None:
            shape = list(kept.shape)
            shape[cut.axis] = cut.full
            whole = kept.new_zeros(shape)
            index = torch.tensor(cut.kept, device=kept.device)
            state[prefix + parameter] = whole.index_copy(cut.axis, index, kept)


def _shorten(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    for parameter, cut in module.__dict__["_spatile_cuts"].items():
        given = state.get(prefix + parameter)
        if given is not None and given.ndim > cut.axis and given.shape[cut.axis] == cut.full:
            state[prefix + parameter] = _select(given, cut)


def _select(tensor: torch.Tensor, cut: Cut) -> torch.Tensor:
    return tensor.index_select(cut.axis, torch.tensor(cut.kept, device=tensor.device))
