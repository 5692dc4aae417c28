"""The one mechanism behind ``TokenPruning`` and ``HeadPruning``: it hangs on a model's encoder.

The self-attention of each layer computes through spatile, which gives the importance in the same
pass; what is kept is gathered before W_O (in DistilBERT, whose residual is added elsewhere, before
the first LayerNorm), so the rest of the layer and all later ones are smaller. What the model
returns is put back into its places.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import numpy as np
import torch
from torch import nn

from spatile.inference.running import Kept, head_table
from spatile.sparsity import Structure
from spatile.sparsity.structure import CONFIG_KEY
from spatile.torch.cascade_attention import attend, live_values
from spatile.torch.cascade_pass import CascadePass, Fractions
from spatile.torch.cascade_pause import ATTRIBUTE
from spatile.torch.parameters import unwrap
from spatile.torch.structure import encoder_layers, structure_of

__all__ = ["Cascade", "cascade_of", "check_no_checkpointing", "token_masks"]

Array = np.ndarray[Any, Any]

_FIRST_NORM = "sa_layer_norm"


def _base(model: nn.Module, prefix: str) -> nn.Module:
    """The module that takes ids and a mask and gives hidden states."""
    return unwrap(model).get_submodule(prefix.rstrip("."))


def cascade_of(model: nn.Module) -> Cascade | None:
    """The mechanism that hangs on a part of ``model``."""
    for module in unwrap(model).modules():
        found: Cascade | None = module.__dict__.get(ATTRIBUTE)
        if found is not None:
            return found
    return None


def token_masks(model: nn.Module) -> list[torch.Tensor] | None:
    """Of each layer's output in the last run, (batch, sequence) bool: the tokens that it holds.

    On the device of what ran. None for a model that drops no tokens, and where none has run yet.
    """
    cascade = cascade_of(model)
    if cascade is None or cascade.tokens is None or cascade.last is None:
        return None
    return [torch.from_numpy(mask).to(cascade.device) for mask in cascade.last.masks()]


class Cascade:
    """Hangs on ``model`` from its making to :meth:`remove`."""

    def __init__(self, model: nn.Module) -> None:
        self.tokens: Fractions | None = None
        self.heads: Fractions | None = None
        self.last: CascadePass | None = None
        self.device = torch.device("cpu")  # of the last run's inputs
        self.paused = False
        self._model = unwrap(model)
        self._layers = encoder_layers(self._model)
        self._pass: CascadePass | None = None
        self._going: torch.Tensor | None = None
        self._structure: tuple[list[nn.Module], Any, Structure] | None = None
        self._place: dict[nn.Module, int] = {}
        self._base = _base(self._model, self._layers.prefix)
        self._lengths = torch.empty(0, device="cpu")  # the choice of tokens is the host's
        self._attentions = [self._attention(i) for i in range(len(self._layers.modules))]
        self._hooks = [
            self._base.register_forward_pre_hook(self._enter, with_kwargs=True),
            self._base.register_forward_hook(self._leave, always_call=True),
        ]
        for i, module in enumerate(self._attentions):
            module.forward = functools.partial(self._attend, module)
            where = self._compacts_at(self._layers.modules[i])
            self._hooks.append(where.register_forward_pre_hook(self._compact))
        self._base.__dict__[ATTRIBUTE] = self

    def remove(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()
        for module in self._attentions:
            module.__dict__.pop("forward", None)
        self._base.__dict__.pop(ATTRIBUTE, None)

    def kept(self) -> Kept | None:
        """What each layer worked on in the last run."""
        return None if self.last is None else self.last.kept()

    # ---- where it hangs -------------------------------------------------------------------------

    def _attention(self, layer: int) -> nn.Module:
        query = self._layers.matrices(layer).query[len(self._layers.name(layer)) + 1 :]
        return self._layers.modules[layer].get_submodule(query.rpartition(".")[0])

    @staticmethod
    def _compacts_at(layer: nn.Module) -> nn.Module:
        if hasattr(layer, _FIRST_NORM):
            return layer.get_submodule(_FIRST_NORM)
        return layer.get_submodule("attention.output")

    def structure(self) -> Structure:
        """The model's, as it is now: layers and heads may go while this hangs on it."""
        modules, noted = list(self._layers.modules), getattr(self._layers.config, CONFIG_KEY, None)
        known = self._structure
        if known is None or known[0] != modules or known[1] is not noted:
            known = self._structure = modules, noted, structure_of(self._model)
            self._place = {self._attention(i): i for i in range(len(modules))}
        return known[2]

    # ---- a run ----------------------------------------------------------------------------------

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._pass = self._going = None
        if self.paused:
            return
        given = inspect.signature(type(module).forward).bind_partial(module, *args, **kwargs)
        arguments = {**given.arguments.get("kwargs", {}), **given.arguments}
        self._refuse(arguments)
        ids = arguments.get("input_ids")
        inputs = arguments.get("inputs_embeds") if ids is None else ids
        if inputs is None:
            return  # the model says what is missing
        n, width = inputs.shape[:2]
        self._lengths = _lengths(arguments.get("attention_mask"), n, width).cpu()
        heads = [kept.heads for kept in self.structure().layers]
        run = CascadePass(self._lengths.numpy(), width, heads, self._has_heads(heads))
        run.plan(self.tokens, self.heads)
        self.last, self.device = run, inputs.device
        # Where nothing goes, the model is left to itself: its outputs keep their bits.
        self._pass = run if run.loses else None

    def _has_heads(self, heads: list[tuple[int, ...]]) -> Array:
        """(layers, heads of the dense model) bool: the heads that have values in each layer."""
        config = self._layers.config
        n_heads, parts = int(config.num_attention_heads), self._layers
        live = []
        for i, own in enumerate(heads):
            m = parts.matrices(i)
            value, output = parts.part(i, m.value), parts.part(i, m.output)
            rows = live_values(value, output, int(config.hidden_size) // n_heads)[1]
            live.append(np.array(own)[rows.any(dim=1).cpu().numpy()])
        return head_table(live, n_heads)

    def _refuse(self, arguments: dict[str, Any]) -> None:
        config = self._layers.config
        attentions = arguments.get("output_attentions")
        if config.output_attentions if attentions is None else attentions:
            raise ValueError(
                "pruning: output_attentions is True, expected False: probabilities are not stored"
            )
        if arguments.get("head_mask") is not None:
            raise NotImplementedError("pruning: head_mask is given, expected None")
        if self._model.training:
            check_no_checkpointing("pruning", self._model)

    def _attend(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run = self._pass
        if run is None:
            return type(module).forward(module, *args, **kwargs)
        names = ("hidden_states", "query")  # of its input, in one version or another
        x = args[0] if args else next(kwargs[name] for name in names if name in kwargs)
        layer = self._place[module]
        parts = self._layers
        m = parts.matrices(layer)
        dim = int(parts.config.hidden_size) // int(parts.config.num_attention_heads)
        query, key, value, output = (
            parts.part(layer, name) for name in (m.query, m.key, m.value, m.output)
        )
        needs = run.needs_tokens(layer), run.needs_heads(layer)
        found = attend(
            *(projection(x).unflatten(-1, (-1, dim)) for projection in (query, key, value)),
            value=value,
            output=output,
            lengths=self._lengths,
            kept=torch.from_numpy(run.heads_of(layer)).to(x.device),
            dropout=float(module.dropout.p) if module.training else 0.0,
            importance=any(needs),
        )
        rows = run.after_attention(
            layer, found.tokens if needs[0] else None, found.heads if needs[1] else None
        )
        if rows is not None:
            self._going = torch.from_numpy(rows).to(x.device)
            self._lengths = torch.from_numpy(run.counts)
        # DistilBERT's holds W_O too.
        holds_output = any(part is output for part in module.children())
        return (output(found.out) if holds_output else found.out), None

    def _compact(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        rows, self._going = self._going, None
        if rows is None:
            return None
        return tuple(
            a.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, rows.shape) for a in args
        )

    def _leave(self, module: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
        run, self._pass, self._going = self._pass, None, None
        if run is None or outputs is None or self.tokens is None:
            return None
        if not hasattr(outputs, "last_hidden_state"):
            raise NotImplementedError(
                "TokenPruning: return_dict is False, expected True: hidden states are put back "
                "into their places by name"
            )
        masks, states = run.masks(), outputs.get("hidden_states")
        last = outputs.last_hidden_state
        outputs["last_hidden_state"] = self._put_back(last, masks[-1])
        if states is not None:  # the embeddings' output comes first, and is whole
            places = zip(states[1:], masks, strict=True)
            found = [
                outputs.last_hidden_state if x is last else self._put_back(x, mask)
                for x, mask in places
            ]
            outputs["hidden_states"] = (states[0], *found)
        return outputs

    def _put_back(self, x: torch.Tensor | None, mask: Array) -> torch.Tensor | None:
        """(inputs, kept, width) → (inputs, sequence, width), zeros where a token is gone."""
        assert self.last is not None
        if x is None or mask is self.last.whole:
            return x
        counts = mask.sum(axis=1)
        valid = np.arange(x.shape[1]) < counts[:, None]
        rows, places = (
            torch.from_numpy(np.nonzero(m.ravel())[0]).to(x.device) for m in (valid, mask)
        )
        full = x.new_zeros(mask.size, x.shape[-1])
        full = full.index_copy(0, places, x.flatten(0, 1).index_select(0, rows))
        return full.unflatten(0, mask.shape)


def check_no_checkpointing(name: str, model: nn.Module) -> None:
    """Raise NotImplementedError where gradient checkpointing is on."""
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise NotImplementedError(
            f"{name}: gradient checkpointing is on, expected off: it runs a layer once more, when "
            f"other tokens are left than there were"
        )


def _lengths(mask: Any, n: int, width: int) -> torch.Tensor:
    """(inputs,) int64 valid tokens, of a mask (inputs, width) that ends in its padding."""
    if mask is None:
        return torch.full((n,), width, device="cpu")
    if not isinstance(mask, torch.Tensor) or mask.shape != (n, width):
        found = tuple(mask.shape) if hasattr(mask, "shape") else type(mask).__name__
        raise NotImplementedError(
            f"pruning: attention_mask is {found}, expected one value for each of ({n}, {width}) "
            f"tokens"
        )
    valid = mask.bool()
    lengths = valid.sum(dim=1)
    if not bool((valid == (torch.arange(width, device=mask.device) < lengths[:, None])).all()):
        raise ValueError(
            "pruning: attention_mask has padding before or between tokens, expected it at the end "
            "(the tokenizer's padding_side='right')"
        )
    return lengths
