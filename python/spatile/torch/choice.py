"""Which groups of a model's planned matrices a pruning drops."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import nn

from spatile import ops
from spatile.patterns import Pattern
from spatile.sparsity import PlannedMatrix
from spatile.sparsity.plan import check_sparsity
from spatile.sparsity.saliency import SALIENCIES, SECOND_ORDER, Saliency
from spatile.torch.distributed import broadcast_from_first
from spatile.torch.parameters import weight_view
from spatile.torch.saliency import GradientScores, masks_by_score
from spatile.torch.second_order import compensate, find_removals, removal_masks

__all__ = ["Calibration", "GroupChoice", "Scope"]

Scope = Literal["matrix", "global", "row-balanced"]
Batches = Iterable[Mapping[str, torch.Tensor]]
Calibration = Sequence[Mapping[str, torch.Tensor]] | Callable[[], Batches]
Masks = dict[str, torch.Tensor]


class GroupChoice:
    """Ranks groups by ``saliency`` within ``scope``; arguments as in :class:`Pruner`.

    ``gradients`` holds the scores of saliency by gradients, and is None for the others.
    """

    def __init__(
        self,
        model: nn.Module,
        matrices: Sequence[PlannedMatrix],
        parameters: Mapping[str, nn.Parameter],
        *,
        saliency: Saliency,
        scope: Scope,
        calibration: Calibration | None,
        damping: float,
    ) -> None:
        if saliency not in SALIENCIES:
            listed = ", ".join(repr(s) for s in SALIENCIES)
            raise ValueError(f"Pruner: saliency is {saliency!r}, expected one of {listed}")
        if not (math.isfinite(damping) and damping > 0):
            raise ValueError(f"Pruner: damping is {damping}, expected a positive number")
        if saliency in SECOND_ORDER and calibration is None:
            raise ValueError(
                f"Pruner: calibration is None, expected batches for saliency {saliency!r}"
            )
        if (
            calibration is not None
            and not callable(calibration)
            and hasattr(calibration, "__next__")
        ):
            raise ValueError(
                "Pruner: calibration can be read once only, expected a list of batches or a "
                "function that gives them"
            )
        self.saliency: Saliency = saliency
        self.scope: Scope = self._checked(scope)
        self.calibration, self.damping = calibration, float(damping)
        self._model, self._matrices, self._parameters = model, matrices, parameters
        self.gradients = GradientScores(saliency) if saliency in ("movement", "taylor") else None

    def observe(self) -> None:
        """Look at the gradients of now; nothing for saliency that needs none."""
        if self.gradients is None:
            return
        graded = ((m, self._parameters[m.parameter].grad) for m in self._matrices)
        self.gradients.add(
            (m, self._weight(m), weight_view(grad, m)) for m, grad in graded if grad is not None
        )

    def masks(
        self, pruned: Masks, *, sparsity: float | None, fraction: float, scope: Scope | None
    ) -> Masks:
        """Masks by matrix name; ``pruned`` are those in force. See :meth:`Pruner.prune`."""
        chosen = self.scope if scope is None else self._checked(scope)
        override = None if sparsity is None else check_sparsity(sparsity)
        if not 0.0 < fraction <= 1.0:
            raise ValueError(f"Pruner: fraction is {fraction}, expected a fraction in (0, 1]")
        pools = self._pools(chosen)
        wanted = [(p[0].sparsity if override is None else override) * fraction for p in pools]
        if chosen != "row-balanced" and self.saliency in SECOND_ORDER and any(wanted):
            whole = self.saliency == "second-order"
            removals = find_removals(
                self._model,
                self._matrices,
                self._parameters,
                self._batches(),
                damping=self.damping,
                whole_model=whole,
            )
            masks = removal_masks(pools, removals, wanted, scope=chosen, relative=not whole)
        else:
            masks = {}
            for pool, target in zip(pools, wanted, strict=True):
                per_row = chosen == "row-balanced" and pool[0].mask_shape[1] > 1
                found = self._masks_of(pool, target, pruned, per_row=per_row)
                masks.update(zip((m.name for m in pool), found, strict=True))
        return {
            m.name: masks[m.name].to(self._parameters[m.parameter].device) for m in self._matrices
        }

    def pruned(self, masks: Masks) -> dict[str, float]:
        """What is due once ``masks`` are decided: compensation, and gradients counted anew.

        Returns the relative errors of second-order pruning; nothing else, and where none went.
        """
        if self.gradients is not None:
            self.gradients.clear()
        if self.saliency not in SECOND_ORDER or all(bool(m.all()) for m in masks.values()):
            return {}
        errors = compensate(
            self._model,
            self._matrices,
            self._parameters,
            masks,
            self._batches(),
            damping=self.damping,
        )
        broadcast_from_first([self._weight(m) for m in self._matrices])
        return errors

    def _weight(self, matrix: PlannedMatrix) -> torch.Tensor:
        return weight_view(self._parameters[matrix.parameter], matrix)

    def _masks_of(
        self, pool: Sequence[PlannedMatrix], sparsity: float, pruned: Masks, *, per_row: bool
    ) -> list[torch.Tensor]:
        places = {m.name: self._parameters[m.parameter].device for m in pool}
        first, *others = places.items()
        for name, device in others:
            if device != first[1]:
                raise ValueError(
                    f"Pruner: {name} is on {device} and {first[0]} on {first[1]}, expected one "
                    f"device for matrices that scope 'global' ranks together"
                )
        if self.gradients is not None:
            scores = self.gradients.of(pool)
            return masks_by_score(pool, scores, pruned, sparsity=sparsity, row_balanced=per_row)
        try:
            found: list[torch.Tensor] = ops.prune_mask(
                [self._weight(m) for m in pool],
                pattern=[m.pattern for m in pool],
                sparsity=sparsity,
                scope="row-balanced" if per_row else "global",
            )
        except ValueError as error:
            raise ValueError(f"{', '.join(m.name for m in pool)}: {error}") from None
        return found

    def _batches(self) -> Batches:
        given = self.calibration
        assert given is not None
        return given() if callable(given) else given

    def _pools(self, scope: Scope) -> list[list[PlannedMatrix]]:
        """Matrices ranked together: all of one pattern and sparsity, or each alone.

        Patterns don't mix, for then a row and a tile would count alike, and the share of groups
        pruned would say nothing about the share of weights.
        """
        if scope != "global":
            return [[m] for m in self._matrices]
        pools: dict[tuple[Pattern, float], list[PlannedMatrix]] = {}
        for m in self._matrices:
            pools.setdefault((m.pattern, m.sparsity), []).append(m)
        return list(pools.values())

    def _checked(self, scope: Scope) -> Scope:
        if scope not in ("matrix", "global", "row-balanced"):
            raise ValueError(
                f"Pruner: scope is {scope!r}, expected 'matrix', 'global' or 'row-balanced'"
            )
        if scope == "row-balanced" and self.saliency in SECOND_ORDER:
            raise ValueError(
                f"Pruner: scope is 'row-balanced', expected 'matrix' or 'global' with saliency "
                f"{self.saliency!r}"
            )
        return scope
