"""Finding the matrices of a model that a plan names, and the layers that lose a part."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from spatile.patterns import Pattern
from spatile.sparsity.layouts import LayerNames, Matrix, find_matrices
from spatile.sparsity.plan import Plan, StructureEntry, StructureKind
from spatile.sparsity.structure import Structure

__all__ = ["PlannedMatrix", "match", "match_layers"]

_LISTED = 12
_NUMBER = re.compile(
    r"(?P<before>(^|\.)(encoder\.layer|transformer\.layer|h)\.)(?P<layer>\d+)(?=\.)"
)


@dataclass(frozen=True)
class PlannedMatrix(Matrix):
    """A matrix (see :class:`~spatile.sparsity.Matrix`) with the pattern and sparsity it gets."""

    pattern: Pattern
    sparsity: float

    @property
    def mask_shape(self) -> tuple[int, int]:
        """Groups along (out, in)."""
        return self.pattern.mask_shape(self.shape)


def match(
    plan: Plan,
    named_shapes: Mapping[str, Sequence[int]],
    *,
    structure: Structure | None = None,
) -> list[PlannedMatrix]:
    """The matrices that ``plan`` prunes in a model of these parameters, in the model's order.

    ``named_shapes`` maps parameter names, as in a checkpoint, to their shapes. A model's prefix
    (``bert.``, ``module.``) does not matter. ``structure`` is that of a model that has lost layers:
    the plan names its matrices as the dense model did. A plan of structure entries alone matches
    none. Raises ValueError, listing what was there, when nothing matches, when a plain name of the
    plan matches nothing (a typing error, or another model's plan), and when a plain target names
    only matrices that are never pruned.

    >>> plan = Plan.uniform("tile", 0.5)
    >>> [m.name for m in match(plan, {"encoder.layer.0.output.dense.weight": (32, 64),
    ...                               "pooler.dense.weight": (32, 32)})]
    ['encoder.layer.0.output.dense']
    """
    matrices = find_matrices(named_shapes)
    before = _dense_names(matrices, structure)
    dense = [replace(m, name=before[m.name]) for m in matrices]
    _check_plain_names(plan, dense + _gone(dense, structure))
    planned = [
        PlannedMatrix(
            m.name, m.parameter, m.shape, m.transposed, m.rows, entry.pattern, entry.sparsity
        )
        for m in matrices
        if m.prunable and not _ignored(plan, before[m.name])
        for entry in [next((e for e in plan.entries if names(e.target, before[m.name])), None)]
        if entry is not None
    ]
    if not planned and plan.entries:
        targets = ", ".join(repr(e.target) for e in plan.entries)
        raise ValueError(f"plan: no matrix matches {targets}; the model has {_listing(matrices)}")
    return planned


def match_layers(
    plan: Plan, kind: StructureKind, layers: Mapping[int, str], matrices: Sequence[LayerNames]
) -> list[tuple[StructureEntry, tuple[int, ...]]]:
    """Each of the plan's entries of this kind, with the dense model's layers that it decides about.

    ``layers`` maps all numbers of the dense model's layers to their names, ``matrices`` are the
    names of each one's matrices. Raises ValueError, listing the layers, for a target that matches
    none.
    """
    entries = [e for e in plan.structure if e.kind == kind]
    for entry in entries:
        if entry.target is not None and not any(names(entry.target, n) for n in layers.values()):
            raise ValueError(
                f"plan: no layer matches {entry.target!r}; the model has "
                f"{', '.join(layers.values())}"
            )
    taken: dict[int, StructureEntry] = {}
    for number, name in layers.items():
        if any(_ignored(plan, matrix) for matrix in _cut(kind, matrices[number])):
            continue
        entry_ = next((e for e in entries if e.target is None or names(e.target, name)), None)
        if entry_ is not None:
            taken[number] = entry_
    return [(e, tuple(i for i, mine in taken.items() if mine is e)) for e in entries]


def _cut(kind: StructureKind, matrices: LayerNames) -> tuple[str, ...]:
    """The matrices that lose something where a layer loses parts of this kind."""
    attention = (matrices.query, matrices.key, matrices.value, matrices.output)
    parts = {"heads": attention, "neurons": matrices.ffn, "layers": attention + matrices.ffn}
    return parts[kind]


def _ignored(plan: Plan, name: str) -> bool:
    return any(names(target, name) for target in plan.ignore)


def _dense_names(matrices: list[Matrix], structure: Structure | None) -> dict[str, str]:
    """What each matrix was called before layers were dropped."""
    if structure is None:
        return {m.name: m.name for m in matrices}
    places = [kept.layer for kept in structure.layers]

    def before(found: re.Match[str]) -> str:
        number = int(found["layer"])
        return f"{found['before']}{places[number] if number < len(places) else number}"

    return {m.name: _NUMBER.sub(before, m.name, count=1) for m in matrices}


def _gone(dense: list[Matrix], structure: Structure | None) -> list[Matrix]:
    """The matrices of dropped layers, as far as a check of names needs them."""
    if structure is None:
        return []
    dropped = set(range(structure.n_layers)) - {kept.layer for kept in structure.layers}
    first = structure.layers[0].layer
    pattern = [(m, found) for m in dense if (found := _NUMBER.search(m.name)) is not None]
    return [
        replace(m, name=_NUMBER.sub(rf"\g<before>{layer}", m.name, count=1))
        for layer in sorted(dropped)
        for m, found in pattern
        if int(found["layer"]) == first
    ]


def names(target: str, name: str) -> bool:
    """Whether a target or ignore (name or ``re:`` expression) means what is called ``name``."""
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
