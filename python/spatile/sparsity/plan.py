"""A plan: which matrices of a model are pruned, by which pattern, and how sparse; and which share
of its heads, neurons and layers goes altogether.

Source of the attention-aware assignment: E.T. (SC 2021).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from spatile.patterns import Pattern, PatternLike, Row, Tile, as_pattern
from spatile.sparsity.files import write_atomically
from spatile.sparsity.layouts import DEFAULT_TARGETS, model_shape
from spatile.sparsity.structure import Structure

__all__ = ["Plan", "PlanEntry", "StructureEntry", "StructureKind", "attention_multiply_adds"]

StructureKind = Literal["heads", "neurons", "layers"]

# The share of neurons that goes before the first head does. A choice: on a MiniLM of MRPC, half or
# two thirds of the weights gone in one shot, other splits scored the same within the interval.
_NEURONS_ALONE = 0.75

_FORMAT = "spatile.plan"
# Version 2 has structure entries; a plan without any is written as version 1, which all can read.
_VERSION = 2
_KINDS = ("heads", "neurons", "layers")


@dataclass(frozen=True)
class PlanEntry:
    """Matrices that ``target`` names get ``pattern`` and ``sparsity``.

    ``target`` is a name, or ``re:`` and a regular expression that is searched for in the matrix's
    name. A plain name matches where its dot-separated parts stand in the matrix's name in one run:
    ``encoder.layer.1`` is all of layer 1 (and nothing of layer 10), ``query`` is every query.
    Raises ValueError for a sparsity outside [0, 1) and for a malformed expression.
    """

    target: str
    pattern: Pattern
    sparsity: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", as_pattern(self.pattern))
        object.__setattr__(self, "sparsity", check_sparsity(self.sparsity))
        check_target(self.target)


@dataclass(frozen=True)
class StructureEntry:
    """The fraction ``sparsity`` of the heads, neurons or layers that ``target`` names goes.

    ``kind`` is ``"heads"`` (rows of Q, K and V with columns of O), ``"neurons"`` (rows of the first
    feed-forward matrix with columns of the second) or ``"layers"``. ``target`` names layers, as a
    :class:`PlanEntry`'s names matrices (``encoder.layer.1``, ``re:layer\\.[0-3]$``); None means all
    of them. Of a layer's n heads or neurons min(floor(sparsity·n + 0.5), n − 1) go; with scope
    ``"global"`` n counts those of all the layers together, each of which keeps one. Of n layers
    floor(sparsity·n + 0.5) go, be it all that are named: one of the whole model stays.

    Raises ValueError for an unknown kind, a sparsity outside [0, 1) and a malformed expression.
    """

    kind: StructureKind
    sparsity: float
    target: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(
                f"plan: kind is {self.kind!r}, expected {', '.join(map(repr, _KINDS))}"
            )
        object.__setattr__(self, "sparsity", check_sparsity(self.sparsity, self.kind))
        if self.target is not None:
            check_target(self.target)


@dataclass(frozen=True)
class Plan:
    """Which matrices are pruned how. The first entry that names a matrix decides.

    ``ignore`` takes names and ``re:`` expressions as targets do, and wins over every entry.
    ``precompute`` says for each layer whether W_V and W_O are merged before inference; empty
    means nowhere. Embeddings, poolers and task heads are never pruned, whatever a target says.

    ``structure`` says what goes altogether, before the matrices are pruned: heads, neurons, layers.
    Of the entries of one kind, the first that names a layer decides. Patterns are then laid on the
    smaller matrices, and sparsities count there. All names are those of the dense model, whichever
    layers are gone. A layer keeps all its heads where ``ignore`` names one of Q, K, V and O, all
    its neurons where it names a feed-forward matrix, and stays where it names any of its matrices.

    >>> plan = Plan.uniform("tile", 0.8, ignore=["encoder.layer.0"])
    >>> plan.entries[0].pattern, plan.entries[0].sparsity
    (Tile(rows=16, cols=16), 0.8)
    """

    entries: tuple[PlanEntry, ...]
    ignore: tuple[str, ...] = ()
    precompute: tuple[bool, ...] = ()
    structure: tuple[StructureEntry, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", tuple(self.entries))
        object.__setattr__(self, "ignore", names_tuple("ignore", self.ignore))
        object.__setattr__(self, "precompute", tuple(bool(p) for p in self.precompute))
        object.__setattr__(self, "structure", tuple(self.structure))
        if not self.entries and not self.structure:
            raise ValueError("plan: entries is empty, expected at least one")
        for target in self.ignore:
            check_target(target)

    @classmethod
    def uniform(
        cls,
        pattern: PatternLike,
        sparsity: float,
        *,
        targets: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
    ) -> Plan:
        """One pattern and sparsity for all ``targets`` (default: the encoder's matrices)."""
        kind = as_pattern(pattern)
        chosen = DEFAULT_TARGETS if targets is None else names_tuple("targets", targets)
        if not chosen:
            raise ValueError("plan: targets is empty, expected at least one name")
        return cls(tuple(PlanEntry(t, kind, sparsity) for t in chosen), tuple(ignore))

    @classmethod
    def attention_aware(
        cls,
        config: Any,
        sparsity: float = 0.8,
        *,
        precompute: Literal["auto"] | bool = "auto",
        tokens: int = 128,
        ignore: Sequence[str] = (),
    ) -> Plan:
        """E.T.'s assignment for a BERT, RoBERTa, DistilBERT or GPT-2 ``config`` (object or dict).

        Per layer, without pre-computation: Q, K tile; V row; O tile. With it: Q, K tile; V dense;
        O row. Feed-forward matrices are tile-pruned in both. Q and K are never row-pruned, which
        the paper found to cost much accuracy. ``precompute="auto"`` takes the form with fewer
        multiply-adds by :func:`attention_multiply_adds` at ``tokens`` tokens. Both forms' are in
        proportion to the heads that a layer has left, so their number makes no difference.
        """
        left = Structure.of_config(config)
        shape = model_shape(config, n_layers=None if left is None else left.n_layers)
        if precompute not in (True, False, "auto"):
            raise ValueError(f"plan: precompute is {precompute!r}, expected 'auto', True or False")
        if precompute == "auto":
            merge = _precompute_pays(shape.hidden, shape.heads, tokens, sparsity)
        else:
            merge = bool(precompute)
        entries: list[PlanEntry] = []
        for names in shape.layers:
            entries += [PlanEntry(n, Tile(), sparsity) for n in (names.query, names.key)]
            if merge:
                entries.append(PlanEntry(names.output, Row(), sparsity))
            else:
                entries.append(PlanEntry(names.value, Row(), sparsity))
                entries.append(PlanEntry(names.output, Tile(), sparsity))
            entries += [PlanEntry(n, Tile(), sparsity) for n in names.ffn]
        return cls(tuple(entries), tuple(ignore), (merge,) * len(shape.layers))

    @classmethod
    def structured(cls, config: Any, sparsity: float, *, ignore: Sequence[str] = ()) -> Plan:
        """Whole neurons and heads, ``sparsity`` of the layers' weights in all, and nothing else.

        For a BERT, RoBERTa or DistilBERT ``config`` (object or dict). Neurons cost least, so up to
        three quarters of them go alone; from there on, neurons and heads go in the same step, and
        would be gone together at sparsity 1.

        >>> config = {"model_type": "bert", "hidden_size": 384, "num_attention_heads": 12,
        ...           "num_hidden_layers": 6, "intermediate_size": 1536}
        >>> [[(e.kind, round(e.sparsity, 3)) for e in Plan.structured(config, s).structure]
        ...  for s in (0.5, 0.8)]
        [[('neurons', 0.75)], [('heads', 0.6), ('neurons', 0.9)]]
        """
        shape, wanted = model_shape(config), check_sparsity(sparsity)
        attention, ffn = 4 * shape.hidden**2, 2 * shape.hidden * shape.neurons
        alone = _NEURONS_ALONE * ffn / (attention + ffn)
        if wanted <= alone:
            heads, neurons = None, wanted * _NEURONS_ALONE / alone
        else:
            heads = (wanted - alone) / (1.0 - alone)
            neurons = _NEURONS_ALONE + (1.0 - _NEURONS_ALONE) * heads
        given: dict[StructureKind, float | None] = {"heads": heads, "neurons": neurons}
        entries = tuple(StructureEntry(k, s) for k, s in given.items() if s is not None)
        return cls((), tuple(ignore), structure=entries)

    def with_sparsity(self, sparsity: float) -> Plan:
        """The same plan at another sparsity for every matrix; its structure entries stay."""
        return replace(self, entries=tuple(replace(e, sparsity=sparsity) for e in self.entries))

    def with_structure(
        self,
        *,
        heads: float | None = None,
        neurons: float | None = None,
        layers: float | None = None,
        target: str | None = None,
    ) -> Plan:
        """The same plan with :class:`StructureEntry` entries for what is given behind its own.

        >>> plan = Plan.uniform("tile", 0.5).with_structure(heads=0.25, neurons=0.5)
        >>> [(e.kind, e.sparsity) for e in plan.structure]
        [('heads', 0.25), ('neurons', 0.5)]
        """
        given: dict[StructureKind, float | None] = {
            "heads": heads, "neurons": neurons, "layers": layers
        }  # fmt: skip
        added = tuple(StructureEntry(k, s, target) for k, s in given.items() if s is not None)
        return replace(self, structure=self.structure + added)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form; :meth:`from_dict` reads it back."""
        structure = [
            {"kind": e.kind, "sparsity": e.sparsity, "target": e.target} for e in self.structure
        ]
        return {
            "format": _FORMAT,
            "version": _VERSION if structure else 1,
            "entries": [
                {"target": e.target, "pattern": str(e.pattern), "sparsity": e.sparsity}
                for e in self.entries
            ],
            "ignore": list(self.ignore),
            "precompute": list(self.precompute),
            **({"structure": structure} if structure else {}),
        }

    @classmethod
    def from_dict(cls, data: Any, *, source: str = "plan") -> Plan:
        """Read what :meth:`to_dict` wrote; ``source`` names the origin in errors (ValueError)."""
        if not isinstance(data, Mapping) or data.get("format") != _FORMAT:
            raise ValueError(f"{source}: format is not {_FORMAT!r}, so this is no plan")
        version = data.get("version")
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise ValueError(f"{source}: version is {version!r}, expected a positive integer")
        if version > _VERSION:
            raise ValueError(
                f"{source}: version is {version}, expected at most {_VERSION}: "
                f"the plan was written by a newer spatile"
            )
        entries = _field(data, "entries", source)
        structure = _field(data, "structure", source) if "structure" in data else []
        try:
            return cls(
                tuple(PlanEntry(e["target"], e["pattern"], e["sparsity"]) for e in entries),
                tuple(_field(data, "ignore", source)),
                tuple(_field(data, "precompute", source)),
                tuple(StructureEntry(e["kind"], e["sparsity"], e.get("target")) for e in structure),
            )
        except KeyError as missing:
            raise ValueError(f"{source}: an entry has no {missing}") from None
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{source}: {error}") from None

    def save(self, path: str | PathLike[str]) -> None:
        """Write the plan as JSON; the file at ``path`` is replaced whole or left as it was."""
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        write_atomically(Path(path), text.encode())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Plan:
        """Read a saved plan. Raises ValueError naming ``path`` where it is damaged or newer."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not valid JSON ({error})") from None
        return cls.from_dict(data, source=str(path))


def attention_multiply_adds(
    hidden: int,
    heads: int,
    tokens: int,
    *,
    value_sparsity: float,
    output_sparsity: float,
    precompute: bool,
    kept_heads: int | None = None,
) -> float:
    """Multiply-adds that one layer spends on W_V, A·V and W_O for one input of ``tokens`` tokens.

    With d = ``hidden``, H = ``kept_heads`` (default ``heads``), d_H = d·H/``heads`` the width that
    these heads hold, n = ``tokens``, v and o the sparsities of W_V (rows) and W_O:

    - apart:  n·[(1−v)·d·d_H  +  n·(1−v)·d_H  +  (1−o)·d·d_H]
    - merged: n·[H·(1−o)·d²  +  n·H·(1−o)·d], with M_h = W_{V,h}ᵀ·W_{O,h}ᵀ of (1−o)·d columns

    Q·Kᵀ and the softmax are the same in both and left out. At equal sparsity merging pays with one
    head only; with more it needs a far sparser W_O.

    >>> apart = dict(value_sparsity=0.5, output_sparsity=0.5, precompute=False)
    >>> merged = dict(value_sparsity=0.0, output_sparsity=0.95, precompute=True)
    >>> [attention_multiply_adds(768, 12, 128, **how) for how in (apart, merged)]
    [81788928.0, 52848230.4]
    """
    count = heads if kept_heads is None else kept_heads
    width = hidden * count / heads
    if precompute:
        columns = (1.0 - output_sparsity) * hidden
        per_token = count * columns * hidden + tokens * count * columns
    else:
        rows = (1.0 - value_sparsity) * width
        per_token = rows * hidden + tokens * rows + (1.0 - output_sparsity) * hidden * width
    return round(tokens * per_token, 3)


def _precompute_pays(hidden: int, heads: int, tokens: int, sparsity: float) -> bool:
    apart, merged = (
        attention_multiply_adds(
            hidden,
            heads,
            tokens,
            value_sparsity=0.0 if precompute else sparsity,
            output_sparsity=sparsity,
            precompute=precompute,
        )
        for precompute in (False, True)
    )
    return merged < apart


def check_sparsity(sparsity: Any, of: str = "") -> float:
    """``sparsity`` as a float in [0, 1); ValueError otherwise, TypeError for what is no number."""
    what = f"sparsity of {of}" if of else "sparsity"
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)):
        raise TypeError(f"plan: {what} is {sparsity!r}, expected a number in [0, 1)")
    if not 0.0 <= sparsity < 1.0:
        stays = ": something must stay" if of and sparsity >= 1.0 else ""
        raise ValueError(f"plan: {what} is {sparsity}, expected a number in [0, 1){stays}")
    return float(sparsity)


def check_target(target: Any) -> None:
    """Raise ValueError unless ``target`` is a name or a valid ``re:`` expression."""
    if not isinstance(target, str) or not target:
        raise ValueError(f"plan: target is {target!r}, expected a name or 're:' and an expression")
    if target.startswith("re:"):
        try:
            re.compile(target[3:])
        except re.error as error:
            raise ValueError(f"plan: target {target!r} is no valid expression ({error})") from None


def names_tuple(argument: str, names: Iterable[str]) -> tuple[str, ...]:
    """A tuple of names; TypeError for a bare string, which would be taken letter by letter."""
    if isinstance(names, str):
        raise TypeError(f"plan: {argument} is the string {names!r}, expected a list of names")
    return tuple(names)


def _field(data: Mapping[str, Any], key: str, source: str) -> list[Any]:
    value = data.get(key)
    if not isinstance(value, list):
        # The file is damaged; the caller passed nothing of a wrong type.
        raise ValueError(f"{source}: {key} is {value!r}, expected a list")
    return value
