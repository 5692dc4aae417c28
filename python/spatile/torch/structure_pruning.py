"""Choosing which heads, neurons and layers of a model go, and making up for them.

Sources: optimal-brain-surgeon for structures (Kurtic et al., ZipLM, 2023), layer by layer on
calibration texts; layers by what their absence changes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from spatile import ops
from spatile.patterns import Column, Head, Pattern, Row
from spatile.sparsity import LayerStructure, Plan, Structure
from spatile.sparsity.matching import match_layers
from spatile.sparsity.plan import StructureEntry, StructureKind
from spatile.sparsity.saliency import SECOND_ORDER
from spatile.torch.calibration import LayerWalk
from spatile.torch.cascade_pause import without_cascade
from spatile.torch.evaluation import evaluation_mode
from spatile.torch.parameters import batch_for
from spatile.torch.sensitivity import model_output, output_sensitivities
from spatile.torch.structure import (
    EncoderLayers,
    apply_structure,
    encoder_layers,
    structure_of,
)

__all__ = ["check_structure_plan", "choose_structure", "layers_left", "prune_structure"]

Batches = Sequence[Mapping[str, torch.Tensor]]
Scope = Literal["matrix", "global"]
_PARTS: tuple[StructureKind, ...] = ("heads", "neurons")


@dataclass(frozen=True)
class _Ranking:
    """One layer's heads or neurons in the order in which they would go, and what each costs."""

    order: tuple[int, ...]
    price: tuple[float, ...]


@dataclass(frozen=True)
class _Pool:
    """Layers whose parts compete: the plan's entry, and the layers by their dense number."""

    entry: StructureEntry
    layers: tuple[int, ...]

    def count(self, n: int, layers: int, fraction: float, least: int) -> int:
        """How many of ``n`` in each of ``layers`` layers go, where ``least`` must stay."""
        total = n * layers
        return max(0, min(math.floor(self.entry.sparsity * fraction * total + 0.5), total - least))


def choose_structure(
    model: nn.Module,
    plan: Plan,
    batches: Iterable[Mapping[str, torch.Tensor]] | None = None,
    **options: Any,
) -> Structure:
    """What :func:`prune_structure` would keep, with the same arguments; changes nothing."""
    return prune_structure(copy.deepcopy(model), plan, batches, **options)


def prune_structure(
    model: nn.Module,
    plan: Plan,
    batches: Iterable[Mapping[str, torch.Tensor]] | None = None,
    *,
    saliency: Literal["second-order", "reconstruction", "magnitude"] = "second-order",
    scope: Scope = "matrix",
    fraction: float = 1.0,
    damping: float = 0.01,
    optimizer: torch.optim.Optimizer | None = None,
) -> Structure:
    """Remove the heads, neurons and layers that the structure entries of ``plan`` say, in place.

    First layers: each time that one whose absence changes the model's output on ``batches`` least.
    Then heads and neurons, by ``saliency``:

    - ``"second-order"``: those without which W_O and the second feed-forward matrix cost the
      model's output least on ``batches``; what stays of these matrices makes up for them, layer by
      layer on the inputs that the changed layers before give (:func:`spatile.second_order_prune`;
      ``damping`` is its).
    - ``"reconstruction"``: likewise, but the matrix's own output counts instead of the model's.
    - ``"magnitude"``: those of lowest norm, over all weights that go with one; needs no batches.

    ``scope``: ``"matrix"`` takes the same share of every layer, ``"global"`` ranks the layers that
    share an entry together (for ``"reconstruction"`` by the error relative to each matrix's
    output); a layer keeps one head and one neuron at least. ``batches`` are dicts of tensors as the
    model takes them, without labels: a few hundred texts will do. ``fraction`` in (0, 1] of every
    sparsity goes; sparsities count from the dense model, so that pruning by and by is one call with
    rising fractions.
    Then the model is cut (:func:`apply_structure`, which says what becomes of ``optimizer``).
    Returns the structure that is left. The plan's matrices are left alone: prune them afterwards.

    A model on a GPU stays there; what the second order needs of a matrix is brought to the host.

    Raises NotImplementedError for a model other than BERT, RoBERTa and DistilBERT, ValueError for
    an entry that matches no layer, bad arguments, weights that are NaN or infinite, and where
    ``batches`` are needed and missing.
    """
    _check(saliency, scope, fraction)
    structure = apply_structure(model, optimizer=optimizer)
    pools = _pools(encoder_layers(model), plan, structure)
    needed = [k for k in pools if pools[k] and (k == "layers" or saliency in SECOND_ORDER)]
    listed = [] if batches is None else [batch_for(model, batch) for batch in batches]
    if needed and not listed:
        given = "None" if batches is None else "empty"
        raise ValueError(
            f"prune_structure: batches is {given}, expected texts to choose {needed[0]} by"
        )
    with torch.no_grad(), without_cascade(model):
        for pool in pools["layers"]:
            for number in _layers_to_drop(model, pool, structure, fraction, listed):
                structure = structure.with_layers(k for k in structure.layers if k.layer != number)
                apply_structure(model, structure, optimizer=optimizer)
        job = _Job(model, structure, pools, scope, fraction, damping)
        if saliency == "magnitude":
            left = job.by_norms()
        else:
            left = job.by_second_order(listed, whole_model=saliency == "second-order")
    return apply_structure(model, left, optimizer=optimizer)


def check_structure_plan(model: nn.Module, plan: Plan) -> None:
    """Raise what :func:`prune_structure` would for a model or entries that it can't take."""
    if plan.structure:
        _pools(encoder_layers(model), plan, structure_of(model))


def layers_left(model: nn.Module, plan: Plan) -> int:
    """How many layers ``model`` has once it is cut as ``plan`` says. Raises as that would."""
    structure = structure_of(model)
    pools = _pools(encoder_layers(model), plan, structure)["layers"]
    left = [kept.layer for kept in structure.layers]
    for pool in pools:
        gone = sum(number not in left for number in pool.layers)
        count = pool.count(1, len(pool.layers), 1.0, 0) - gone
        left = left[max(0, min(count, len(left) - 1)) :]
    return len(left)


def _check(saliency: str, scope: str, fraction: float) -> None:
    for name, value, expected in (
        ("saliency", saliency, (*SECOND_ORDER, "magnitude")),
        ("scope", scope, ("matrix", "global")),
    ):
        if value not in expected:
            raise ValueError(
                f"prune_structure: {name} is {value!r}, expected {' or '.join(map(repr, expected))}"
            )
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"prune_structure: fraction is {fraction}, expected one in (0, 1]")


def _pools(
    layers: EncoderLayers, plan: Plan, structure: Structure
) -> dict[StructureKind, list[_Pool]]:
    numbers = range(structure.n_layers)
    names = {i: layers.name(i) for i in numbers}
    matrices = [layers.matrices(i) for i in numbers]
    kinds: tuple[StructureKind, ...] = ("layers", *_PARTS)
    return {
        kind: [_Pool(*found) for found in match_layers(plan, kind, names, matrices)]
        for kind in kinds
    }


# ---- layers -------------------------------------------------------------------------------------


def _layers_to_drop(
    model: nn.Module, pool: _Pool, structure: Structure, fraction: float, batches: Batches
) -> Iterable[int]:
    """The layers of ``pool`` that go, one at a time: the caller drops each before the next."""
    left = [kept.layer for kept in structure.layers]
    gone = sum(number not in left for number in pool.layers)
    count = pool.count(1, len(pool.layers), fraction, 0) - gone
    for _ in range(min(count, len(left) - 1)):
        candidates = [i for i, number in enumerate(left) if number in pool.layers]
        yield left.pop(_least_missed(model, candidates, batches))


def _least_missed(model: nn.Module, candidates: Sequence[int], batches: Batches) -> int:
    """The place of the layer without which the model's output changes least.

    What a layer changes of its own input says less: on a fine-tuned MiniLM, the layer that changed
    it least was the one without which F1 fell furthest.
    """
    modules = encoder_layers(model).modules
    all_of_them = list(modules)
    changes: dict[int, float] = {}
    with evaluation_mode(model):
        whole = [model_output(model, batch) for batch in batches]
        for i in candidates:
            del modules[i]
            try:
                changes[i] = sum(
                    float((model_output(model, batch) - before).double().square().sum())
                    for batch, before in zip(batches, whole, strict=True)
                )
            finally:
                del modules[:]
                modules.extend(all_of_them)
    return min(changes, key=lambda i: changes[i])


# ---- heads and neurons --------------------------------------------------------------------------


class _Job:
    """The heads and neurons of one model, ranked and cut."""

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        pools: Mapping[StructureKind, list[_Pool]],
        scope: Scope,
        fraction: float,
        damping: float,
    ) -> None:
        self._model = model
        self._layers = encoder_layers(model)
        self._structure = structure
        self._pools = {kind: self._kept_pools(pools[kind]) for kind in _PARTS}
        self._scope = scope
        self._fraction = fraction
        self._damping = damping
        self._width = self._layers.config.hidden_size // structure.n_heads
        self._sensitivities: dict[str, torch.Tensor] = {}

    def _kept_pools(self, pools: list[_Pool]) -> list[_Pool]:
        """Pools of places in the model as it is, of those layers that are left."""
        at = {kept.layer: i for i, kept in enumerate(self._structure.layers)}
        found = (_Pool(p.entry, tuple(at[n] for n in p.layers if n in at)) for p in pools)
        return [p for p in found if p.layers]

    def by_norms(self) -> Structure:
        """What is left where the parts of lowest norm go."""
        gone: dict[StructureKind, dict[int, set[int]]] = {}
        for kind in _PARTS:
            rankings = {i: self._norms(kind, i) for pool in self._pools[kind] for i in pool.layers}
            gone[kind] = self._allocate(kind, rankings)
        return self._without(gone)

    def by_second_order(self, batches: Batches, *, whole_model: bool) -> Structure:
        """What is left where the parts that outputs miss least go; the others make up for them."""
        if not any(self._pools.values()):
            return self._structure
        if whole_model:
            places = range(len(self._layers.modules))
            readers = [self._readers(kind, i)[0] for i in places for kind in self._kinds_of(i)]
            self._sensitivities = output_sensitivities(self._model, readers, batches)
        gone: dict[StructureKind, dict[int, set[int]]] = {}
        if self._scope == "global":
            with LayerWalk(self._model, batches) as walk:
                rankings: dict[StructureKind, dict[int, _Ranking]] = {k: {} for k in _PARTS}
                for i in range(len(walk.layers)):
                    for kind in self._kinds_of(i):
                        rankings[kind][i] = self._costs(kind, i, walk)
                    walk.advance()
            gone = {kind: self._allocate(kind, rankings[kind]) for kind in _PARTS}
        else:
            gone = {kind: {} for kind in _PARTS}
        with LayerWalk(self._model, batches) as walk:
            for i in range(len(walk.layers)):
                for kind in self._kinds_of(i):
                    if self._scope == "matrix":
                        gone[kind].update(self._allocate(kind, {i: self._costs(kind, i, walk)}))
                    self._compensate(kind, i, gone[kind][i], walk)
                walk.advance()
        return self._without(gone)

    def _kinds_of(self, i: int) -> list[StructureKind]:
        return [k for k in _PARTS if any(i in pool.layers for pool in self._pools[k])]

    def _readers(self, kind: StructureKind, i: int) -> tuple[str, Pattern]:
        """The matrix whose columns go with the parts, and the pattern of its groups."""
        names = self._layers.matrices(i)
        if kind == "heads":
            return names.output, Head(self._width, "in")
        return names.ffn[1], Column()

    def _norms(self, kind: StructureKind, i: int) -> _Ranking:
        names = self._layers.matrices(i)
        rows: Pattern = Head(self._width, "out")
        writers: Sequence[str] = (names.query, names.key, names.value)
        if kind == "neurons":
            rows, writers = Row(), names.ffn[:1]
        reader, columns = self._readers(kind, i)
        parts = [(self._layers.part(i, n).weight.detach(), rows) for n in writers]
        parts.append((self._layers.part(i, reader).weight.detach(), columns))
        squares = sum(
            ops.group_norms(w, pattern=pattern).double().flatten() ** 2 for w, pattern in parts
        )
        assert isinstance(squares, torch.Tensor)
        if not bool(torch.isfinite(squares).all()):
            raise ValueError(f"prune_structure: weights of {reader} are NaN or infinite")
        # Of equals the later goes first, as everywhere.
        order = torch.argsort(squares.flip(0), stable=True)
        order = len(squares) - 1 - order
        return _Ranking(tuple(order.tolist()), tuple(squares[order].sqrt().tolist()))

    def _costs(self, kind: StructureKind, i: int, walk: LayerWalk) -> _Ranking:
        name, pattern = self._readers(kind, i)
        rows = self._sensitivities.get(name)
        found = ops.second_order_removals(
            self._layers.part(i, name).weight.detach().cpu(),
            walk.grams([name])[name].cpu(),
            pattern=pattern,
            damping=self._damping,
            row_weight=None if rows is None else rows.cpu(),
        )
        price = found.price[0]
        if not self._sensitivities:  # then only shares of each matrix's output compare
            price = price / (float(found.cost.sum()) or 1.0)
        return _Ranking(tuple(found.order[0].tolist()), tuple(price.tolist()))

    def _allocate(
        self, kind: StructureKind, rankings: Mapping[int, _Ranking]
    ) -> dict[int, set[int]]:
        """Which parts of each ranked layer go: the cheapest, each layer's in their own order."""
        dense = self._structure.n_heads if kind == "heads" else self._structure.n_neurons
        gone: dict[int, set[int]] = {}
        for pool in self._pools[kind]:
            ranked = [i for i in pool.layers if i in rankings]
            units = [ranked] if self._scope == "global" else [[i] for i in ranked]
            for unit in units:
                missing = sum(dense - len(rankings[i].order) for i in unit)
                count = pool.count(dense, len(unit), self._fraction, len(unit)) - missing
                # The last of each layer stays, whatever the others cost.
                offers = [
                    (price, -i, step)
                    for i in unit
                    for step, price in enumerate(rankings[i].price[:-1])
                ]
                taken = sorted(offers)[: max(0, count)]
                for i in unit:
                    steps = sum(-place == i for _, place, _ in taken)
                    gone[i] = set(rankings[i].order[:steps])
        return gone

    def _compensate(self, kind: StructureKind, i: int, gone: set[int], walk: LayerWalk) -> None:
        if not gone:
            return
        name, pattern = self._readers(kind, i)
        weight = self._layers.part(i, name).weight
        mask = torch.ones(pattern.mask_shape((weight.shape[0], weight.shape[1])), dtype=torch.bool)
        mask[0, sorted(gone)] = False
        gram = walk.grams([name])[name].cpu()
        pruned = ops.second_order_apply(
            weight.detach().cpu(), gram, mask, pattern=pattern, damping=self._damping
        )
        weight.copy_(pruned.w)

    def _without(self, gone: Mapping[StructureKind, Mapping[int, set[int]]]) -> Structure:
        """The structure without these parts, which are counted in the model as it is."""

        def left(kind: StructureKind, i: int, places: tuple[int, ...]) -> tuple[int, ...]:
            lost = gone[kind].get(i, set())
            return tuple(p for j, p in enumerate(places) if j not in lost)

        layers: list[LayerStructure] = [
            replace(
                kept,
                heads=left("heads", i, kept.heads),
                neurons=left("neurons", i, kept.neurons),
            )
            for i, kept in enumerate(self._structure.layers)
        ]
        return self._structure.with_layers(layers)
