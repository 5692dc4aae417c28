"""A model's weight matrices as (out, in) views of its parameters' own memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from spatile.sparsity import Matrix, Plan, PlannedMatrix, Structure, match

__all__ = ["batch_for", "planned_matrices", "unwrap", "weight_view"]


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, DataParallel and torch.compile wrappers."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner: object = model.module
        else:
            inner = getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def planned_matrices(
    model: nn.Module, plan: Plan
) -> tuple[list[PlannedMatrix], dict[str, nn.Parameter]]:
    """The matrices of ``model`` that ``plan`` prunes, and the parameters that hold them, by name.

    The plan names layers as they were before any was dropped. Raises ValueError when none matches,
    NotImplementedError for a parameter that holds only a part of its matrix (FSDP, tensor
    parallelism, DeepSpeed ZeRO-3).
    """
    inner = unwrap(model)
    parameters = dict(inner.named_parameters())
    matrices = match(
        plan,
        {name: tuple(p.shape) for name, p in parameters.items()},
        structure=Structure.of_config(getattr(inner, "config", None)),
    )
    used = {m.parameter: parameters[m.parameter] for m in matrices}
    for name, parameter in used.items():
        if hasattr(parameter, "placements") or hasattr(parameter, "ds_shape"):
            raise NotImplementedError(
                f"plan: {name} is sharded over processes, expected a whole matrix on each "
                f"(DistributedDataParallel keeps it whole)"
            )
    return matrices, used


def batch_for(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """``batch`` with its tensors on the device of ``model``'s first parameter, where inputs go."""
    first = next(model.parameters(), None)
    if first is None:
        return dict(batch)
    return {
        name: value.to(first.device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def weight_view(tensor: torch.Tensor, matrix: Matrix) -> torch.Tensor:
    """``matrix`` as an (out, in) view into ``tensor``, its parameter or the parameter's gradient.

    The view is detached and shares memory, so that in-place operations act on the parameter.
    """
    view = tensor.detach()
    if matrix.transposed:
        view = view.t()
    return view if matrix.rows is None else view[matrix.rows[0] : matrix.rows[1]]
