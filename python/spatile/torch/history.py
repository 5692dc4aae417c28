"""What pruning while training did, in numbers for a report: all JSON-serialisable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from spatile import ops
from spatile.sparsity import Plan, PlannedMatrix, StageSteps, Structure
from spatile.torch.pruner import Pruner

__all__ = ["lasso_summary", "new_history", "norm_summary", "pruned_fractions"]

# Eight bins a decade from 1e-6 to 10: fixed, so that histograms of different moments compare.
_LOWEST, _HIGHEST, _PER_DECADE = -6, 1, 8

# A penalty that does nothing leaves norms where plain training leaves them, within a few percent.
_ACTED_BELOW = 0.95

Tensors = Mapping[str, torch.Tensor]


def new_history(pruner: Pruner, plan: Plan, steps: StageSteps, strength: float) -> dict[str, Any]:
    """What is known at the start of training; see :attr:`PruningCallback.history`."""
    return {
        "plan": plan.to_dict(),
        "method": pruner.method,
        "scope": pruner.scope,
        "saliency": pruner.saliency,
        "eps": pruner.eps,
        "strength": strength,
        "stages": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(steps).items()
        },
        "norms": {"start": norm_summary(pruner)},
        "reweights": [],
    }


def norm_summary(pruner: Pruner) -> dict[str, Any]:
    """Norms of all groups, per pattern: a histogram, and each matrix's median.

    Norms are divided by √(group size), so that groups of different sizes compare: the root mean
    square of a group's weights. ``edges`` are powers of ten in ``log10_edges``; groups that are
    exactly zero are counted in ``zeros`` and in no bin; what lies outside is in the outermost bin.
    """
    bins = (_HIGHEST - _LOWEST) * _PER_DECADE
    counts: dict[str, torch.Tensor] = {}
    zeros: dict[str, int] = {}
    medians: dict[str, float] = {}
    for m, norm in zip(pruner.matrices, pruner.norms().values(), strict=True):
        rms = norm.cpu() / _group_sizes(m).sqrt()
        medians[m.name] = float(rms.median())
        key = str(m.pattern)
        positive = rms[rms > 0].log10().clamp(_LOWEST, _HIGHEST)
        histogram = torch.histc(positive, bins=bins, min=_LOWEST, max=_HIGHEST)
        counts[key] = counts.get(key, torch.zeros(bins, device="cpu")) + histogram
        zeros[key] = zeros.get(key, 0) + int((rms == 0).sum())
    edges = [_LOWEST + i / _PER_DECADE for i in range(bins + 1)]
    return {
        "log10_edges": edges,
        "counts": {key: [int(c) for c in value] for key, value in counts.items()},
        "zeros": zeros,
        "median": medians,
    }


def lasso_summary(
    matrices: Sequence[PlannedMatrix],
    *,
    norms_before: Tensors,
    masks_before: Tensors,
    norms_after: Tensors,
    masks_after: Tensors,
) -> dict[str, Any]:
    """What the reweighted stage changed, between its start ("before") and the pruning ("after").

    - ``mask_agreement``: share of groups that the weights at the stage's start (λ = 0) would have
      treated the same, over all and per matrix.
    - ``norm_ratio``: median of after/before norms, of all groups, the pruned and the kept ones.
    - ``energy_removed``: Σ‖W_g‖² of the pruned groups over that of all groups: what pruning
      cost the weights, after the stage; and ``energy_removed_without``, what it would have cost
      at the stage's start.
    - ``acted``: whether the norms of the pruned groups fell by 5 % at least in the median. False
      is a stage that did nothing: its strength was too small, or nothing was trained.
    """
    ratios: dict[str, list[torch.Tensor]] = {"all": [], "pruned": [], "kept": []}
    energy = {"before": [0.0, 0.0], "after": [0.0, 0.0]}
    same: dict[str, float] = {}
    agreeing = total = 0
    for m in matrices:
        before, after = norms_before[m.name].cpu().double(), norms_after[m.name].cpu().double()
        keep_before, keep = masks_before[m.name].cpu(), masks_after[m.name].cpu()
        equal = keep_before == keep
        same[m.name] = float(equal.double().mean())
        agreeing, total = agreeing + int(equal.sum()), total + equal.numel()
        alive = before > 0
        ratio = torch.where(alive, after / before.clamp_min(1e-300), torch.ones_like(after))
        for key, chosen in (("all", alive), ("pruned", alive & ~keep), ("kept", alive & keep)):
            ratios[key].append(ratio[chosen])
        for key, norm, kept in (("before", before, keep_before), ("after", after, keep)):
            energy[key][0] += float((norm[~kept] ** 2).sum())
            energy[key][1] += float((norm**2).sum())
    medians = {key: _median(parts) for key, parts in ratios.items()}
    fell = medians["pruned"] if medians["pruned"] is not None else medians["all"]
    return {
        "mask_agreement": {"all": agreeing / max(1, total), "matrices": same},
        "norm_ratio": medians,
        "energy_removed": _share(energy["after"]),
        "energy_removed_without": _share(energy["before"]),
        "acted": fell is not None and fell < _ACTED_BELOW,
    }


def pruned_fractions(
    pruner: Pruner, structure: Structure | None = None, *, width: int = 0
) -> dict[str, Any]:
    """The share of weights pruned: ``matrices`` (each) and ``all`` (of all planned weights).

    Weights are counted, not groups: a group that overhangs its matrix's edge holds fewer. With a
    ``structure``, ``all`` is of the layers of the dense model, of hidden ``width``, and counts what
    went with heads, neurons and layers.
    """
    masks = pruner.masks
    pruned = total = 0
    each: dict[str, float] = {}
    for m in pruner.matrices:
        size = m.shape[0] * m.shape[1]
        mask = masks.get(m.name)
        gone = 0
        if mask is not None:
            kept = ops.expand_mask(mask, m.shape, pattern=m.pattern)
            gone = size - int(kept.sum())
        each[m.name] = gone / max(1, size)
        pruned, total = pruned + gone, total + size
    if structure is not None:
        whole = Structure.whole(
            structure.n_layers, n_heads=structure.n_heads, n_neurons=structure.n_neurons
        )
        total = whole.weights(width)
        pruned += total - structure.weights(width)
    return {"all": pruned / max(1, total), "matrices": each}


def _group_sizes(m: PlannedMatrix) -> torch.Tensor:
    """Elements of each group that lie inside the matrix, float32, of the mask's shape."""
    lengths = []
    for size, group, count in zip(
        m.shape, m.pattern.group_shape(m.shape), m.mask_shape, strict=True
    ):
        length = torch.full((count,), float(group), device="cpu")
        length[-1] = size - group * (count - 1)
        lengths.append(length)
    return torch.outer(lengths[0], lengths[1])


def _median(parts: list[torch.Tensor]) -> float | None:
    joined = torch.cat([p.flatten() for p in parts])
    return float(joined.median()) if joined.numel() else None


def _share(part_and_whole: list[float]) -> float:
    part, whole = part_and_whole
    return part / whole if whole > 0 else 0.0
