"""Second-order pruning of a whole model: layer by layer, on the inputs that texts give.

Source: the optimal-brain-surgeon family (Hassibi and Stork 1993) applied to a transformer's layers
one after another, as SparseGPT (Frantar and Alistarh 2023) and ZipLM (Kurtic et al. 2023) do. What
an error of a layer's output means for the model is taken from the diagonal of the Gauss-Newton
matrix, as a product of one weight for each feature and one for each token: without them a layer's
most pointless outputs count as much as those that decide.
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
from spatile.torch.sensitivity import Sensitivity, output_sensitivities

__all__ = ["compensate", "find_removals", "matrix_sensitivities", "removal_masks"]

Batches = Iterable[Mapping[str, torch.Tensor]]
Parameters = Mapping[str, nn.Parameter]


def find_removals(
    model: nn.Module,
    matrices: Sequence[PlannedMatrix],
    parameters: Parameters,
    batches: Batches,
    *,
    damping: float = 0.01,
    sensitivities: Mapping[str, Sensitivity] | None = None,
) -> dict[str, Removals]:
    """What each group's removal would cost, by matrix name; changes nothing.

    With the :func:`matrix_sensitivities` of the same batches the cost is what the model's output
    loses, the same measure for all matrices; without, what the matrix's own output loses.
    ``batches`` are what :class:`LayerWalk` takes. Raises ValueError for a matrix that is in no
    layer of the encoder, and as :func:`spatile.second_order_removals` does.
    """
    found: dict[str, Removals] = {}
    with LayerWalk(model, batches) as walk:
        for here in _by_layer(matrices, walk.layers):
            grams = _grams(walk, here, sensitivities, advance=True)
            for m in here:
                found[m.name] = ops.second_order_removals(
                    weight_view(parameters[m.parameter], m),
                    grams[_module(m)],
                    pattern=m.pattern,
                    damping=damping,
                    row_weight=_row_weight(m, sensitivities),
                )
    return {m.name: found[m.name] for m in matrices}


def matrix_sensitivities(
    model: nn.Module, matrices: Sequence[PlannedMatrix], batches: Batches
) -> dict[str, Sensitivity]:
    """:func:`output_sensitivities` of the modules that ``matrices`` belong to."""
    # There are none where whole structures went.
    return output_sensitivities(model, _modules(matrices), batches) if matrices else {}


def removal_masks(
    pools: Sequence[Sequence[PlannedMatrix]],
    removals: Mapping[str, Removals],
    sparsities: Sequence[float],
    *,
    scope: Literal["matrix", "global"],
    relative: bool = False,
) -> dict[str, torch.Tensor]:
    """The masks at one sparsity for each pool of matrices (see second_order_mask), by name."""
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
    sensitivities: Mapping[str, Sensitivity] | None = None,
) -> dict[str, float]:
    """Set pruned weights to zero and have the kept ones make up for them, layer by layer.

    Each layer does so on the inputs that the changed layers before it give, tokens counting as
    ``sensitivities`` say. Returns each matrix's error relative to its output on those inputs,
    ‖X·ΔWᵀ‖²/‖X·Wᵀ‖².
    """
    errors: dict[str, float] = {}
    with LayerWalk(model, batches) as walk:
        for here in _by_layer(matrices, walk.layers):
            grams = _grams(walk, here, sensitivities)
            for m in here:
                weight, gram = weight_view(parameters[m.parameter], m), grams[_module(m)]
                pruned = ops.second_order_apply(
                    weight, gram, masks[m.name], pattern=m.pattern, damping=damping
                )
                before = weight.double()
                power = float(((before @ gram) * before).sum())
                errors[m.name] = float(pruned.cost) / power if power > 0 else 0.0
                weight.copy_(pruned.w)
            walk.advance()
    return {m.name: errors[m.name] for m in matrices}


def _grams(
    walk: LayerWalk,
    matrices: Sequence[PlannedMatrix],
    sensitivities: Mapping[str, Sensitivity] | None,
    *,
    advance: bool = False,
) -> dict[str, torch.Tensor]:
    names = _modules(matrices)
    weights = None
    if sensitivities is not None:
        weights = {name: sensitivities[name].token_weights() for name in names}
    return walk.grams(names, token_weights=weights, advance=advance)


def _row_weight(
    matrix: PlannedMatrix, sensitivities: Mapping[str, Sensitivity] | None
) -> torch.Tensor | None:
    if sensitivities is None:
        return None
    features = sensitivities[_module(matrix)].features
    return features if matrix.rows is None else features[matrix.rows[0] : matrix.rows[1]]


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
