"""A pruned run of an encoder as the paper says it, in float64, one input at a time.

Value rows that are zero or that W_O does not read are no part of a head: what they give is
constant. A layer does not have a head without any other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from transformers import PreTrainedModel

from spatile import reference
from spatile.sparsity.layouts import layer_names
from spatile.torch import structure_of


@dataclass
class PrunedRun:
    """``hidden`` (kept tokens, width); what each layer worked on; how clear each choice was."""

    hidden: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    tokens: list[list[int]] = field(default_factory=list)
    heads: list[list[int]] = field(default_factory=list)
    margin: float = float("inf")

    def note_choice(self, kept: float, dropped: float) -> None:
        """The scores of neighbours of which one was dropped."""
        if kept != 0:  # heads without values are equal, and the first of them stays
            self.margin = min(self.margin, abs(kept - dropped) / abs(kept))


def _choose(scores: torch.Tensor, count: int, sure: set[int], run: PrunedRun) -> list[int]:
    """Positions of the ``count`` largest, ``sure`` before all others; the first of equals."""
    order = sorted(range(len(scores)), key=lambda j: (j not in sure, -float(scores[j]), j))
    if len(sure) < count < len(order):
        run.note_choice(*(float(scores[j]) for j in order[count - 1 : count + 1]))
    return sorted(order[:count])


def heads_left(alive: set[int], later: list[set[int]], scores: list[float], count: int) -> set[int]:
    """What is left of ``alive`` when the first of the ``later`` layers is to work with ``count``.

    ``later``: the heads that each layer still to come has. Heads that the next one does not have
    are not its concern. Of its own the least important go first, and of equals the last; none goes
    that is the last one left to a later layer, since what is dropped does not come back.
    """
    left = set(alive)
    for head in sorted(alive & later[0], key=lambda h: (scores[h], -h)):
        if len(left & later[0]) > count and all(left & own != {head} for own in later):
            left.remove(head)
    return left


def pruned_run(
    model: PreTrainedModel,
    ids: list[int],
    types: list[int],
    tokens: tuple[int, ...],
    heads: tuple[int, ...],
    protect: tuple[int, ...] = (0,),
) -> PrunedRun:
    """``tokens`` and ``heads``: with how many each layer works, of heads at most."""
    base = model.base_model.double()
    family = model.config.model_type
    extra = {"token_type_ids": torch.tensor([types])} if family == "bert" else {}
    state = dict(base.named_parameters())  # a state_dict has the dense shapes
    run = PrunedRun()
    with torch.no_grad():
        x = base.embeddings(torch.tensor([ids]), **extra)[0]
        n_heads = model.config.num_attention_heads
        kept, alive = list(range(len(ids))), set(range(n_heads))
        own = [left.heads for left in structure_of(model).layers]
        has = [_with_values(state, family, i, own[i]) for i in range(len(own))]
        token_scores, head_scores = torch.zeros(len(ids)).double(), torch.zeros(n_heads).double()
        for i in range(len(tokens)):
            run.tokens.append(kept)
            run.heads.append(sorted(alive & has[i]))
            x = _layer(base, state, family, i, x, own[i], alive, token_scores, head_scores)
            if i + 1 < len(tokens):
                sure = {kept.index(p % len(ids)) for p in protect}
                stay = _choose(token_scores, max(tokens[i + 1], len(sure)), sure, run)
                scores, later = head_scores.tolist(), has[i + 1 :]
                left = heads_left(alive, later, scores, heads[i + 1])
                order = sorted(alive & later[0], key=lambda h: (scores[h], -h))
                for low, high in pairwise(order):
                    if (low in left) != (high in left):
                        run.note_choice(scores[high], scores[low])
                alive = left
                kept = [kept[j] for j in stay]
                x, token_scores = x[stay], token_scores[stay]
    run.hidden = x
    base.float()
    return run


def _with_values(
    state: dict[str, torch.Tensor], family: str, i: int, own: tuple[int, ...]
) -> set[int]:
    live = _live(state, family, i).reshape(len(own), -1).any(1).tolist()
    return {head for head, has_values in zip(own, live, strict=True) if has_values}


def _live(state: dict[str, torch.Tensor], family: str, i: int) -> torch.Tensor:
    """Value rows that are not zero and that W_O reads."""
    names = layer_names(family, i)
    value, output = (state[f"{name}.weight"] for name in (names.value, names.output))
    return value.ne(0).any(1) & output.ne(0).any(0)


def _layer(
    base: torch.nn.Module,
    state: dict[str, torch.Tensor],
    family: str,
    i: int,
    x: torch.Tensor,
    own: tuple[int, ...],
    alive: set[int],
    token_scores: torch.Tensor,
    head_scores: torch.Tensor,
) -> torch.Tensor:
    names = layer_names(family, i)

    def linear(name: str, y: torch.Tensor) -> torch.Tensor:
        return y @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    q, k, v = (
        linear(name, x).reshape(len(x), len(own), -1).numpy()
        for name in (names.query, names.key, names.value)
    )
    live = _live(state, family, i).reshape(len(own), -1)
    context = state[f"{names.value}.bias"].repeat(len(x), 1).reshape(len(x), len(own), -1) * ~live
    for j, head in enumerate(own):
        if head in alive and live[j].any():
            one = (y[None, :, j : j + 1] for y in (q, k, v))
            found = reference.attention(*one, return_importance=True)
            out = torch.from_numpy(found.out[0, :, 0]) * live[j]
            token_scores += torch.from_numpy(found.token_importance[0])
            head_scores[head] += out.abs().sum()
            context[:, j] += out
    layer = base.get_submodule(names.query.split(".layer.")[0]).layer[i]
    if family == "distilbert":
        norms = (layer.sa_layer_norm, layer.output_layer_norm)
    else:
        norms = (layer.attention.output.LayerNorm, layer.output.LayerNorm)
    y = norms[0](linear(names.output, context.reshape(len(x), -1)) + x)
    inner = torch.nn.functional.gelu(linear(names.ffn[0], y))
    return norms[1](linear(names.ffn[1], inner) + y)
