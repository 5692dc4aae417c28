"""Linear layers that compute with the kept groups of their weight alone, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spatile import ops
from spatile.ops.sparse_matrix import SparseMatrix
from spatile.patterns import Element, Pattern
from spatile.torch.layers import Linear, autocast, product
from spatile.torch.parameters import unwrap
from spatile.torch.pruner import Pruner

__all__ = ["SparseLinear", "densify", "sparsify", "sparsify_worthwhile"]

# Activations are transposed on their way in and out; a layer that skips less may not earn that.
_WORTHWHILE = 0.1
# PyTorch's dense products under bfloat16 autocast take a third of the time.
_WORTHWHILE_BF16 = 0.6


class SparseLinear(Linear):
    """An ``nn.Linear`` of which :func:`sparsify` knows which groups of ``weight`` are kept.

    Parameters, their names and shapes are those of ``nn.Linear``, so optimizers, checkpoints and
    DistributedDataParallel notice nothing. The output is that of the weight with zeros in its
    pruned groups, whatever is there, and the weight's gradient is zero in them. Tensors are
    float32, bfloat16 or float16, on the CPU or a CUDA device, to which what is known of groups
    follows when the module moves; sums are float32. Under autocast, inputs are cast as
    ``nn.Linear``'s are. Not differentiable twice.
    """

    mask: torch.Tensor
    """bool, ``pattern.mask_shape((out_features, in_features))``, True = kept; on the CPU."""
    pattern: Pattern
    _structure: SparseMatrix | None
    _mask_there: torch.Tensor  # on the weight's device, as of the last time it was wanted
    _was: type[nn.Linear]

    def _keep(self, mask: torch.Tensor, pattern: Pattern) -> None:
        self.mask = mask.detach().to("cpu", copy=True)
        self.pattern = pattern
        self._structure = None
        self._mask_there = self.mask

    @property
    def structure(self) -> SparseMatrix:
        """Which weights are stored; its values are not kept up to date."""
        if self._structure is None:
            nothing = torch.zeros(self.weight.shape, device="cpu")
            self._structure = ops.pack(nothing, self.mask, pattern=self.pattern)
        return self._structure

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(…, in_features) → (…, out_features) of the same dtype."""
        weight = self.weight
        if self.structure.index["kept"] is not None:
            # Some stored columns belong to pruned groups in part of their 16 rows.
            if self._mask_there.device != weight.device:
                self._mask_there = self.mask.to(weight.device)
            shape = (self.out_features, self.in_features)
            weight = weight * ops.expand_mask(self._mask_there, shape, pattern=self.pattern)
        return product(autocast(input), weight, self.bias, self.structure)

    def extra_repr(self) -> str:
        """The layer's line in a printed model."""
        return f"{super().extra_repr()}, {self.pattern}, {self.structure.sparsity:.1%} pruned"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_structure": None, "_mask_there": self.mask}


def sparsify(model: nn.Module, pruner: Pruner, *, min_sparsity: float = 0.0) -> tuple[str, ...]:
    """Have the pruned linear layers of ``model`` compute their kept groups only.

    Each ``nn.Linear`` (or :class:`Linear`) whose weight ``pruner`` has pruned becomes a
    :class:`SparseLinear`, in place and with the same parameters; call it once more after pruning
    again. Pruned weights are set to zero. Layers stay as they are where they are something else
    (GPT-2's Conv1D) or pruned by single elements, and those of PyTorch where less than
    ``min_sparsity`` of what would be computed is saved. Returns the names of the layers that are
    sparse now; :func:`densify` undoes it.

    The gradient of a pruned weight is zero, where that of an ``nn.Linear`` is not: the norm that
    gradients are clipped by counts kept weights alone.

    Raises ValueError where ``pruner`` has not pruned yet or prunes another model.

    >>> from transformers import BertConfig, BertModel
    >>> from spatile.torch import Plan, Pruner
    >>> model = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
    ...                              intermediate_size=64, vocab_size=9))
    >>> pruner = Pruner(model, Plan.uniform("tile", 0.5), strength=0.0)
    >>> _ = pruner.prune()
    >>> len(sparsify(model, pruner)), len(densify(model))
    (6, 6)
    """
    masks = pruner.masks
    if not masks:
        raise ValueError("sparsify: pruner has no masks, expected one that has pruned (prune())")
    if not 0.0 <= min_sparsity <= 1.0:
        raise ValueError(f"sparsify: min_sparsity is {min_sparsity}, expected 0 to 1")
    inner = unwrap(model)
    parameters = dict(inner.named_parameters())
    pruner.apply_masks()
    found: list[str] = []
    for m in pruner.matrices:
        if parameters.get(m.parameter) is not pruner.parameter(m):
            raise ValueError(
                f"sparsify: model's {m.parameter} is not the one that pruner prunes, "
                f"expected the model that it was made with"
            )
        name = m.parameter.rpartition(".")[0]
        module = inner.get_submodule(name)
        whole = m.rows is None and not m.transposed and m.parameter.endswith(".weight")
        linear = type(module) in (nn.Linear, Linear, SparseLinear)
        if not (whole and linear) or isinstance(m.pattern, Element):
            continue
        was = module._was if isinstance(module, SparseLinear) else type(module)
        module.__class__ = SparseLinear
        assert isinstance(module, SparseLinear)
        module._was = was
        module._keep(masks[m.name], m.pattern)
        stored = module.structure.values.size / max(1, module.weight.numel())
        if was is nn.Linear and min_sparsity > 0.0 and 1.0 - stored < min_sparsity:
            _densify(module)
        else:
            found.append(name)
    return tuple(found)


def sparsify_worthwhile(model: nn.Module, pruner: Pruner, *, bf16: bool) -> tuple[str, ...]:
    """:func:`sparsify` where it makes training faster: layers on the CPU that skip enough.

    None on a GPU: from what share of a layer on it pays there, nobody has measured.

    ``bf16`` says that training runs under bfloat16 autocast. Returns the names of the layers.
    """
    parameters = [pruner.parameter(m) for m in pruner.matrices]
    # There are none where whole heads and neurons are gone, and their layers are smaller.
    if not parameters or not all(_is_plain(p) for p in parameters):
        return ()
    return sparsify(model, pruner, min_sparsity=_WORTHWHILE_BF16 if bf16 else _WORTHWHILE)


def _is_plain(p: nn.Parameter) -> bool:
    return bool(p.device.type == "cpu" and p.dtype == torch.float32)


def densify(model: nn.Module) -> tuple[str, ...]:
    """Undo :func:`sparsify`: the layers are again what they were, with the same parameters.

    Returns the names of the layers that were sparse.
    """
    found = []
    for name, module in unwrap(model).named_modules():
        if isinstance(module, SparseLinear):
            _densify(module)
            found.append(name)
    return tuple(found)


def _densify(module: SparseLinear) -> None:
    was = module._was
    for attribute in ("mask", "pattern", "_structure", "_mask_there", "_was"):
        delattr(module, attribute)
    module.__class__ = was
