"""What a group is worth by its gradients: movement and the first-order Taylor estimate.

Sources: movement pruning (Sanh et al. 2020), summed over groups as its block form does (Lagunas et
al. 2021); importance estimation (Molchanov et al. 2019).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch.nn import functional as F

from spatile import ops
from spatile.patterns import Pattern
from spatile.sparsity import PlannedMatrix

__all__ = ["GradientScores", "masks_by_score"]


class GradientScores:
    """Scores of all groups, summed over the steps that :meth:`add` has seen since :meth:`clear`.

    With p = Σ_g w·∂L/∂w over the weights of a group: ``"movement"`` adds −p, so that groups whose
    weights are driven away from zero rank high; ``"taylor"`` adds p², the square of what the loss
    would change by, to first order, were the group gone.
    """

    def __init__(self, kind: Literal["movement", "taylor"]) -> None:
        self.kind = kind
        self.scores: dict[str, torch.Tensor] = {}

    def add(self, seen: Iterable[tuple[PlannedMatrix, torch.Tensor, torch.Tensor]]) -> None:
        """One step's matrices, weights and gradients, both (out, in).

        A step whose gradients are not finite is left out, as a GradScaler leaves it out.
        """
        products = {m.name: _group_sums(w.float() * g.float(), m.pattern) for m, w, g in seen}
        finite = [torch.isfinite(product).all() for product in products.values()]
        # One question to a GPU, not one for each matrix.
        if finite and not bool(torch.stack([f.to(finite[0].device) for f in finite]).all()):
            return
        for name, product in products.items():
            step = -product if self.kind == "movement" else product.square()
            if name in self.scores:
                self.scores[name].add_(step)
            else:
                self.scores[name] = step

    def clear(self) -> None:
        """Begin anew."""
        self.scores.clear()

    def of(self, matrices: Sequence[PlannedMatrix]) -> list[torch.Tensor]:
        """The scores of ``matrices``; ValueError where no step was seen for one of them."""
        for m in matrices:
            if m.name not in self.scores:
                raise ValueError(
                    f"Pruner: {self.kind} has seen no gradient of {m.name}, expected steps with "
                    f"before_step() ahead of prune()"
                )
        return [self.scores[m.name] for m in matrices]


def masks_by_score(
    pool: Sequence[PlannedMatrix],
    scores: Sequence[torch.Tensor],
    masks: Mapping[str, torch.Tensor],
    *,
    sparsity: float,
    row_balanced: bool,
) -> list[torch.Tensor]:
    """The masks that :func:`spatile.prune_mask` would give were the scores its groups' norms.

    Groups that ``masks`` has pruned before go first, whatever their score.
    """
    flat = torch.cat([s.flatten().double() for s in scores])
    gone = torch.cat(
        [
            ~masks[m.name].flatten()
            if m.name in masks
            else torch.zeros(s.numel(), dtype=torch.bool, device=s.device)
            for m, s in zip(pool, scores, strict=True)
        ]
    )
    if not bool(torch.isfinite(flat).all()):
        raise ValueError("Pruner: scores are NaN or infinite, expected finite gradients")
    flat[gone] = -torch.inf
    # Scores have any sign and scale; their ranks are what a norm may be. Of equals the earlier is
    # kept, so it ranks above.
    rank = torch.empty(flat.numel(), device=flat.device)
    descending = torch.arange(flat.numel(), 0, -1, device=flat.device)
    rank[torch.argsort(-flat, stable=True)] = descending.float()
    rank[gone] = 0.0
    ranks = [
        part.view(s.shape).contiguous()
        for part, s in zip(rank.split([s.numel() for s in scores]), scores, strict=True)
    ]
    scope: Literal["row-balanced", "global"] = "row-balanced" if row_balanced else "global"
    found: list[torch.Tensor] = ops.prune_mask(
        ranks, pattern="element", sparsity=sparsity, scope=scope
    )
    return found


def _group_sums(x: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Sums over a matrix's groups, of ``pattern.mask_shape``."""
    rows, cols = pattern.group_shape((x.shape[0], x.shape[1]))
    padded = F.pad(x, (0, -x.shape[1] % cols, 0, -x.shape[0] % rows))
    down, across = padded.shape[0] // rows, padded.shape[1] // cols
    return padded.view(down, rows, across, cols).sum(dim=(1, 3))
