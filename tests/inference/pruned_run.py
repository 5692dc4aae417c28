"""A pruned run of an encoder as the paper says it, in float64, one input at a time.

Value rows that are zero or that W_O does not read are no part of a head: what they give is
constant. A head without any other counts for no token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from spatile import reference
from spatile.sparsity.layouts import layer_names


@dataclass
class PrunedRun:
    """``hidden`` (kept tokens, width); what each layer worked on; how clear each choice was."""

    hidden: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    tokens: list[list[int]] = field(default_factory=list)
    heads: list[list[int]] = field(default_factory=list)
    margin: float = float("inf")


def _choose(scores: torch.Tensor, count: int, sure: set[int], run: PrunedRun) -> list[int]:
    """Positions of the ``count`` largest, ``sure`` before all others; the first of equals."""
    order = sorted(range(len(scores)), key=lambda j: (j not in sure, -float(scores[j]), j))
    if len(sure) < count < len(order):
        last, next_one = (float(scores[j]) for j in order[count - 1 : count + 1])
        if last != 0:  # heads without values are equal, and the first of them stays
            run.margin = min(run.margin, (last - next_one) / abs(last))
    return sorted(order[:count])


def pruned_run(
    model: PreTrainedModel,
    ids: list[int],
    types: list[int],
    tokens: tuple[int, ...],
    heads: tuple[int, ...],
    protect: tuple[int, ...] = (0,),
) -> PrunedRun:
    """``tokens`` and ``heads``: with how many each layer works."""
    base = model.base_model.double()
    family = model.config.model_type
    extra = {"token_type_ids": torch.tensor([types])} if family == "bert" else {}
    state = base.state_dict()
    run = PrunedRun()
    with torch.no_grad():
        x = base.embeddings(torch.tensor([ids]), **extra)[0]
        n_heads = model.config.num_attention_heads
        kept, present = list(range(len(ids))), list(range(n_heads))
        token_scores, head_scores = torch.zeros(len(ids)).double(), torch.zeros(n_heads).double()
        for i in range(len(tokens)):
            run.tokens.append(kept)
            run.heads.append(present)
            x = _layer(base, state, family, i, x, n_heads, present, token_scores, head_scores)
            if i + 1 < len(tokens):
                sure = {kept.index(p % len(ids)) for p in protect}
                stay = _choose(token_scores, max(tokens[i + 1], len(sure)), sure, run)
                left = _choose(head_scores[present], heads[i + 1], set(), run)
                present = [present[j] for j in left]
                kept = [kept[j] for j in stay]
                x, token_scores = x[stay], token_scores[stay]
    run.hidden = x
    base.float()
    return run


def _layer(
    base: torch.nn.Module,
    state: dict[str, torch.Tensor],
    family: str,
    i: int,
    x: torch.Tensor,
    n_heads: int,
    present: list[int],
    token_scores: torch.Tensor,
    head_scores: torch.Tensor,
) -> torch.Tensor:
    names = layer_names(family, i)

    def linear(name: str, y: torch.Tensor) -> torch.Tensor:
        return y @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    q, k, v = (
        linear(name, x).reshape(len(x), n_heads, -1)[:, present].numpy()
        for name in (names.query, names.key, names.value)
    )
    live = state[f"{names.value}.weight"].ne(0).any(1) & state[f"{names.output}.weight"].ne(0).any(
        0
    )
    live = live.reshape(n_heads, -1)
    context = state[f"{names.value}.bias"].repeat(len(x), 1).reshape(len(x), n_heads, -1) * ~live
    for j, head in enumerate(present):
        if live[head].any():
            one = (y[None, :, j : j + 1] for y in (q, k, v))
            found = reference.attention(*one, return_importance=True)
            out = torch.from_numpy(found.out[0, :, 0]) * live[head]
            token_scores += torch.from_numpy(found.token_importance[0])
            head_scores[head] += out.abs().sum()
            context[:, head] += out
    layer = base.get_submodule(names.query.split(".layer.")[0]).layer[i]
    if family == "distilbert":
        norms = (layer.sa_layer_norm, layer.output_layer_norm)
    else:
        norms = (layer.attention.output.LayerNorm, layer.output.LayerNorm)
    y = norms[0](linear(names.output, context.reshape(len(x), -1)) + x)
    inner = torch.nn.functional.gelu(linear(names.ffn[0], y))
    return norms[1](linear(names.ffn[1], inner) + y)
