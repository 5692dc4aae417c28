"""Second-order pruning of a whole model: layer by layer, on the inputs that texts give.

Source: the optimal-brain-surgeon family (Hassibi and Stork 1993) applied to a transformer's layers
one after another, as SparseGPT (Frantar and Alistarh 2023) and ZipLM (Kurtic et al. 2023) do. What
an error of a layer's output means for the model is taken from the diagonal of the Gauss-Newton
matrix: without it a layer's most pointless outputs count as much as those that decide.

Texts run through the model on its device, and grams are summed there. The ops that choose and make
up for groups are the CPU's alone: of a model on a GPU, one matrix after another is brought to the
host with its gram, and what comes of it is copied back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import nn

from spatile import ops
from spatile.ops import Removals
from spatile.sparsity import PlannedMatrix
from spatile.torch.calibration import LayerWalk
from spatile.torch.parameters import weight_view
from spatile.torch.sensitivity import output_sensitivities

__all__ = ["compensate", "find_removals", "removal_masks"]

Batches = Iterable[Mapping[str, torch.Tensor]]
Parameters = Mapping[str, nn.Parameter]


def find_removals(
    model: nn.Module,
    matrices: Sequence[PlannedMatrix],
    parameters: Parameters,
    batches: Batches,
    *,
    damping: float = 0.01,
    whole_model: bool = True,
) -> dict[str, Removals]:
    """What each group's removal would cost, by matrix name; changes nothing.

    The cost is what the model's output loses (:func:`output_sensitivities`), the same measure for
    all matrices; without ``whole_model`` it is what the matrix's own output loses. ``batches``
    are what :class:`LayerWalk` takes. Raises ValueError for a matrix that is in no layer of the
    encoder, and as :func:`spatile.second_order_removals` does.
    """
    found: dict[str, Removals] = {}
    batches = list(batches)
    weights: dict[str, torch.Tensor] = {}
    if whole_model and matrices:  # there are none where whole structures went
        weights = output_sensitivities(model, _modules(matrices), batches)
    with LayerWalk(model, batches) as walk:
        for here in _by_layer(matrices, walk.layers):
            grams = walk.grams(_modules(here), advance=True)
            for m in here:
                rows = _rows(weights.get(_module(m)), m)
                found[m.name] = ops.second_order_removals(
                    weight_view(parameters[m.parameter], m).cpu(),
                    grams[_module(m)].cpu(),
                    pattern=m.pattern,
                    damping=damping,
                    row_weight=None if rows is None else rows.cpu(),
                )
    return {m.name: found[m.name] for m in matrices}


def removal_masks(
    pools: Sequence[Sequence[PlannedMatrix]],
    removals: Mapping[str, Removals],
    sparsities: Sequence[float],
    *,
    scope: Literal["matrix", "global"],
    relative: bool = False,
) -> dict[str, torch.Tensor]:
    """The masks at one sparsity for each pool of matrices (see second_order_mask), by name.

    On the CPU, as ``removals`` are.
    """
    masks: dict[str, torch.Tensor] = {}
    for pool, sparsity in zip(pools, sparsities, strict=True):
        found = ops.second_order_mask(
            [removals[m.name] for m in pool],
            sparsity=sparsity,
            scope=scope,
            relative=relative,
        )
        masks.update(zip((m.name for m in pool), found, strict=True))
    return masks


def compensate(
    model: nn.Module,
    matrices: Sequence[PlannedMatrix],
    parameters: Parameters,
    masks: Mapping[str, torch.Tensor],
    batches: Batches,
    *,
    damping: float = 0.01,
) -> dict[str, float]:
    """Set pruned weights to zero and have the kept ones make up for them, layer by layer.

    Each layer does so on the inputs that the changed layers before it give. Returns each matrix's
    error relative to its output on those inputs, ‖X·ΔWᵀ‖²/‖X·Wᵀ‖².
    """
    errors: dict[str, float] = {}
    with LayerWalk(model, batches) as walk:
        for here in _by_layer(matrices, walk.layers):
            grams = walk.grams(_modules(here))
            for m in here:
                weight, gram = weight_view(parameters[m.parameter], m), grams[_module(m)]
                pruned = ops.second_order_apply(
                    weight.cpu(),
                    gram.cpu(),
                    masks[m.name].cpu(),
                    pattern=m.pattern,
                    damping=damping,
                )
                before = weight.double()
                power = float(((before @ gram) * before).sum())
                errors[m.name] = float(pruned.cost) / power if power > 0 else 0.0
                weight.copy_(pruned.w)
            walk.advance()
    return {m.name: errors[m.name] for m in matrices}


def _rows(weights: torch.Tensor | None, matrix: PlannedMatrix) -> torch.Tensor | None:
    """Those of a matrix that is some rows of its parameter."""
    if weights is None or matrix.rows is None:
        return weights
    return weights[matrix.rows[0] : matrix.rows[1]]


def _module(matrix: PlannedMatrix) -> str:
    return matrix.parameter.rpartition(".")[0]


def _modules(matrices: Sequence[PlannedMatrix]) -> list[str]:
    return list(dict.fromkeys(_module(m) for m in matrices))


def _by_layer(
    matrices: Sequence[PlannedMatrix], layers: Sequence[str]
) -> list[list[PlannedMatrix]]:
    parts = [[m for m in matrices if m.parameter.startswith(f"{layer}.")] for layer in layers]
    inside = {m.name for part in parts for m in part}
    for m in matrices:
        if m.name not in inside:
            raise ValueError(
                f"second-order pruning: {m.name} is in no layer of the encoder, expected one in "
                f"{layers[0]} to {layers[-1]}; magnitude works for it"
            )
    return parts
