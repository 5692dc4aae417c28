"""``attn_implementation="spatile"`` for Hugging Face models."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spatile.torch.functional import attention

__all__ = ["attention_forward", "register"]

_NAME = "spatile"

# What other back-ends compute and this one does not; ignoring one would give wrong numbers.
_UNSUPPORTED = ("softcap", "s_aux", "head_mask", "cache")


def register() -> None:
    """Make ``attn_implementation="spatile"`` known to transformers. ``import spatile.torch`` does.

    It works for the models that look their attention up in transformers' ``AttentionInterface``:
    decoders since 4.50, BERT and its relatives since 5.0; others refuse the name.

    The mask function is registered with it: without one, transformers hands a custom back-end no
    padding mask at all, and a padded batch silently attends to its padding.
    """
    from transformers import modeling_utils

    interface = getattr(modeling_utils, "AttentionInterface", None)
    if interface is not None:
        interface.register(_NAME, attention_forward)
    else:
        modeling_utils.ALL_ATTENTION_FUNCTIONS[_NAME] = attention_forward
    try:
        from transformers import masking_utils
    except ImportError:
        # Versions without this module give every back-end that they don't know a 4-D float mask.
        return
    masking_utils.ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, masking_utils.sdpa_mask)


def attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The back-end as transformers calls it: q, k, v (b, h, s, d) → (b, s, h, d), and no weights.

    ``attention_mask`` is bool (True = attend) or float (added to the scores), 4-D; grouped-query
    heads come unrepeated. Raises ValueError for ``output_attentions``, NotImplementedError for
    what this back-end does not compute; both name the back-end that does.
    """
    if kwargs.get("output_attentions"):
        raise ValueError(
            "attention: output_attentions=True needs the probabilities, which are never stored; "
            "expected attn_implementation='eager'"
        )
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise NotImplementedError(
                f"attention: {name} is not supported by attn_implementation='spatile'; "
                f"expected 'eager'"
            )
    queries, keys = query.shape[2], key.shape[2]
    causal = queries > 1 and _is_causal(module, attention_mask, is_causal)
    if causal and keys > queries and attention_mask is None:
        # A cache of fixed size: the keys behind the last query's are not filled yet.
        key, value = key[:, :, :queries], value[:, :, :queries]
        if position_bias is not None:
            position_bias = position_bias[..., :queries]
    mask, bias = _mask_and_bias(attention_mask, position_bias)
    out = attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        mask=mask,
        bias=bias,
        causal=causal,
        scale=scaling,
        dropout=dropout,
    )
    return out, None


def _is_causal(
    module: nn.Module, attention_mask: torch.Tensor | None, is_causal: bool | None
) -> bool:
    """Whether later keys are still to be hidden, besides what the mask hides."""
    if attention_mask is None:
        return bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    # One row for all queries is padding alone. Older GPT-2s pass that, say is_causal=False because
    # there is a mask, and mean their eager code's causality, of which no back-end hears.
    one_row = attention_mask.shape[-2] == 1
    cross = getattr(module, "is_cross_attention", False)
    return one_row and bool(getattr(module, "is_causal", False)) and not cross


def _mask_and_bias(
    attention_mask: torch.Tensor | None, position_bias: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    if attention_mask is None or attention_mask.dtype == torch.bool:
        return attention_mask, position_bias
    if position_bias is None:
        return None, attention_mask
    return None, position_bias + attention_mask
