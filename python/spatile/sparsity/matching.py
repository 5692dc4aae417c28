"""Finding the matrices of a model that a plan names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spatile.patterns import Pattern
from spatile.sparsity.layouts import Matrix, find_matrices
from spatile.sparsity.plan import Plan

__all__ = ["PlannedMatrix", "match"]

_LISTED = 12


@dataclass(frozen=True)
class PlannedMatrix(Matrix):
    """A matrix (see :class:`~spatile.sparsity.Matrix`) with the pattern and sparsity it gets."""

    pattern: Pattern
    sparsity: float

    @property
    def mask_shape(self) -> tuple[int, int]:
        """Groups along (out, in)."""
        return self.pattern.mask_shape(self.shape)


def match(plan: Plan, named_shapes: Mapping[str, Sequence[int]]) -> list[PlannedMatrix]:
    """The matrices that ``plan`` prunes in a model of these parameters, in the model's order.

    ``named_shapes`` maps parameter names, as in a checkpoint, to their shapes. A model's prefix
    (``bert.``, ``module.``) does not matter. Raises ValueError, listing what was there, when
    nothing matches, when a plain name of the plan matches nothing (a typing error, or another
    model's plan), and when a plain target names only matrices that are never pruned.

    >>> plan = Plan.uniform("tile", 0.5)
    >>> [m.name for m in match(plan, {"encoder.layer.0.output.dense.weight": (32, 64),
    ...                               "pooler.dense.weight": (32, 32)})]
    ['encoder.layer.0.output.dense']
    """
    matrices = find_matrices(named_shapes)
    _check_plain_names(plan, matrices)
    planned = [
        PlannedMatrix(
            m.name, m.parameter, m.shape, m.transposed, m.rows, entry.pattern, entry.sparsity
        )
        for m in matrices
        if m.prunable and not any(names(target, m.name) for target in plan.ignore)
        for entry in [next((e for e in plan.entries if names(e.target, m.name)), None)]
        if entry is not None
    ]
    if not planned:
        targets = ", ".join(repr(e.target) for e in plan.entries)
        raise ValueError(f"plan: no matrix matches {targets}; the model has {_listing(matrices)}")
    return planned


def names(target: str, name: str) -> bool:
    """Whether a target or ignore (name or ``re:`` expression) means the matrix called ``name``."""
    if target.startswith("re:"):
        return re.search(target[3:], name) is not None
    return f".{target.removesuffix('.weight')}." in f".{name}."


def _check_plain_names(plan: Plan, matrices: list[Matrix]) -> None:
    for target in [e.target for e in plan.entries] + list(plan.ignore):
        if target.startswith("re:"):
            continue
        found = [m for m in matrices if names(target, m.name)]
        if not found:
            raise ValueError(
                f"plan: no matrix matches {target!r}; the model has {_listing(matrices)}"
            )
        if target not in plan.ignore and not any(m.prunable for m in found):
            raise ValueError(
                f"plan: target {target!r} names {found[0].name}, which is never pruned "
                f"(embeddings, poolers and task heads stay dense)"
            )


def _listing(matrices: list[Matrix]) -> str:
    if not matrices:
        return "no 2-D weight"
    shown = ", ".join(m.name for m in matrices[:_LISTED])
    rest = len(matrices) - _LISTED
    return f"{shown} and {rest} more" if rest > 0 else shown
