"""What is left of an encoder's layers, attention heads and feed-forward neurons. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spatile.sparsity.layouts import LayerNames

__all__ = ["CONFIG_KEY", "Cut", "LayerStructure", "Structure", "layer_cuts"]

#: Under which name a model's configuration holds its structure.
CONFIG_KEY = "spatile_structure"


@dataclass(frozen=True)
class LayerStructure:
    """What is left of one layer: its place in the dense model, and which of its parts, in order.

    Raises ValueError, naming the layer, where no head or no neuron is left, or where they are not
    in ascending order.
    """

    layer: int
    heads: tuple[int, ...]
    neurons: tuple[int, ...]

    def __post_init__(self) -> None:
        for kind in ("heads", "neurons"):
            kept = tuple(int(i) for i in getattr(self, kind))
            object.__setattr__(self, kind, kept)
            if not kept:
                raise ValueError(
                    f"structure: layer {self.layer} has no {kind}, expected at least one to stay"
                )
            if any(b <= a for a, b in itertools.pairwise(kept)) or kept[0] < 0:
                raise ValueError(
                    f"structure: {kind} of layer {self.layer} are {_spelled(kept)}, "
                    f"expected ascending places"
                )


@dataclass(frozen=True)
class Structure:
    """Which layers, and which of their heads and neurons, are left of a dense encoder.

    ``n_layers``, ``n_heads`` and ``n_neurons`` are the dense model's sizes; ``layers`` are those
    that are left. A layer's place in ``layers`` is its number in the smaller model. Raises
    ValueError, naming the layer, where none of its heads or neurons is left, or no layer is.

    >>> whole = Structure.whole(2, n_heads=4, n_neurons=8)
    >>> small = whole.with_layers([LayerStructure(1, heads=(0, 3), neurons=(1, 2, 3, 7))])
    >>> small.to_dict()["layers"]
    [{'layer': 1, 'heads': '0,3', 'neurons': '1-3,7'}]
    """

    n_layers: int
    n_heads: int
    n_neurons: int
    layers: tuple[LayerStructure, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        for name in ("n_layers", "n_heads", "n_neurons"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"structure: {name} is {value!r}, expected a positive integer")
        if not self.layers:
            raise ValueError("structure: no layer is left, expected at least one")
        places = [kept.layer for kept in self.layers]
        if places != sorted(set(places)) or places[0] < 0 or places[-1] >= self.n_layers:
            raise ValueError(
                f"structure: layers are {places}, expected ascending places below {self.n_layers}"
            )
        for kept in self.layers:
            for kind, last, n in (
                ("heads", kept.heads[-1], self.n_heads),
                ("neurons", kept.neurons[-1], self.n_neurons),
            ):
                if last >= n:
                    raise ValueError(
                        f"structure: layer {kept.layer} keeps {last} of its {kind}, "
                        f"expected places below {n}"
                    )

    @classmethod
    def whole(cls, n_layers: int, *, n_heads: int, n_neurons: int) -> Structure:
        """The structure of a dense model."""
        heads, neurons = tuple(range(n_heads)), tuple(range(n_neurons))
        layers = (LayerStructure(i, heads, neurons) for i in range(n_layers))
        return cls(n_layers, n_heads, n_neurons, tuple(layers))

    def weights(self, width: int) -> int:
        """Weights in the matrices of the layers that are left, in a model of hidden ``width``.

        >>> Structure.whole(2, n_heads=4, n_neurons=8).weights(16)
        2560
        """
        head = 4 * width * (width // self.n_heads)
        return sum(head * len(k.heads) + 2 * width * len(k.neurons) for k in self.layers)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing."""
        return len(self.layers) == self.n_layers and all(
            len(kept.heads) == self.n_heads and len(kept.neurons) == self.n_neurons
            for kept in self.layers
        )

    def with_layers(self, layers: Iterable[LayerStructure]) -> Structure:
        """The same dense model with these layers left."""
        return Structure(self.n_layers, self.n_heads, self.n_neurons, tuple(layers))

    def fits_into(self, other: Structure) -> bool:
        """Whether all that is left here is left in ``other`` too."""
        if (self.n_layers, self.n_heads, self.n_neurons) != (
            other.n_layers,
            other.n_heads,
            other.n_neurons,
        ):
            return False
        theirs = {kept.layer: kept for kept in other.layers}
        return all(
            kept.layer in theirs
            and set(kept.heads) <= set(theirs[kept.layer].heads)
            and set(kept.neurons) <= set(theirs[kept.layer].neurons)
            for kept in self.layers
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form; :meth:`from_dict` reads it back."""
        return {
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "n_neurons": self.n_neurons,
            "layers": [
                {
                    "layer": kept.layer,
                    "heads": _spelled(kept.heads),
                    "neurons": _spelled(kept.neurons),
                }
                for kept in self.layers
            ],
        }

    @classmethod
    def from_dict(cls, data: Any, *, source: str = "structure") -> Structure:
        """Read what :meth:`to_dict` wrote; ``source`` names the origin in errors (ValueError)."""
        try:
            n_heads, n_neurons = data["n_heads"], data["n_neurons"]
            layers = tuple(
                LayerStructure(
                    _integer(entry["layer"]),
                    _places(entry["heads"], n_heads),
                    _places(entry["neurons"], n_neurons),
                )
                for entry in data["layers"]
            )
            return cls(data["n_layers"], n_heads, n_neurons, layers)
        except KeyError as missing:
            raise ValueError(f"{source}: {CONFIG_KEY} has no {missing}") from None
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{source}: {CONFIG_KEY} is damaged ({error})") from None

    @classmethod
    def of_config(cls, config: Any, *, source: str = "config") -> Structure | None:
        """What a configuration (object or dict) says of its model; None where it says nothing.

        Raises ValueError naming ``source`` where it is damaged.
        """
        if isinstance(config, Mapping):
            data = config.get(CONFIG_KEY)
        else:
            data = getattr(config, CONFIG_KEY, None)
        return None if data is None else cls.from_dict(data, source=source)


@dataclass(frozen=True)
class Cut:
    """Which places along ``axis`` of a parameter are kept, of ``full`` that there were."""

    axis: int
    kept: tuple[int, ...]
    full: int


def layer_cuts(
    names: LayerNames, layer: LayerStructure, structure: Structure, *, head_width: int
) -> dict[str, Cut]:
    """How one layer's parameters, called as ``names`` says, are cut from the dense model's.

    >>> from spatile.sparsity.layouts import layer_names
    >>> small = LayerStructure(0, heads=(1,), neurons=(0, 2))
    >>> structure = Structure.whole(1, n_heads=2, n_neurons=3).with_layers([small])
    >>> cuts = layer_cuts(layer_names("bert", 0), small, structure, head_width=4)
    >>> cuts["encoder.layer.0.attention.output.dense.weight"]
    Cut(axis=1, kept=(4, 5, 6, 7), full=8)
    """
    features = tuple(h * head_width + i for h in layer.heads for i in range(head_width))
    width = structure.n_heads * head_width
    rows = Cut(0, features, width)
    neurons = Cut(0, layer.neurons, structure.n_neurons)
    cuts = {}
    for name, cut in (
        (names.query, rows),
        (names.key, rows),
        (names.value, rows),
        (names.ffn[0], neurons),
    ):
        cuts[f"{name}.weight"] = cuts[f"{name}.bias"] = cut
    cuts[f"{names.output}.weight"] = Cut(1, features, width)
    cuts[f"{names.ffn[1]}.weight"] = Cut(1, layer.neurons, structure.n_neurons)
    return cuts


def _spelled(places: Sequence[int]) -> str:
    """(0, 1, 2, 5) → "0-2,5"."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][1] + 1:
            runs[-1][1] = place
        else:
            runs.append([place, place])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _places(text: str, below: int) -> tuple[int, ...]:
    """The places that :func:`_spelled` wrote."""
    found: list[int] = []
    for run in text.split(",") if text else ():
        first, _, last = run.partition("-")
        # A damaged file must not ask for a range that fills the memory.
        if int(last or first) >= below:
            raise ValueError(f"{run} is outside {below} places")
        found.extend(range(int(first), int(last or first) + 1))
    return tuple(found)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is no layer's number")
    return value
