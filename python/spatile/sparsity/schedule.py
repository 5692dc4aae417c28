"""How many tokens, or heads, each layer of a model works on.

Source: SpAtten (HPCA 2021), cascade token and head pruning: what a layer drops is gone from every
later one. The first layers are left whole, from there what is kept falls linearly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from numbers import Real
from typing import Any, Literal

from spatile.ops.tokens import kept_count

__all__ = ["Schedule"]

Unit = Literal["tokens", "heads"]
Averages = tuple[tuple[int, float], ...] | Callable[[int], float]

#: The fraction of the layers, from the first on, that is left whole.
WHOLE = {"tokens": 0.15, "heads": 0.30}


def _fraction(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):  # NumPy's numbers are
        raise TypeError(f"schedule: {name} is {value!r}, expected a fraction in (0, 1]")
    fraction = float(value)
    if not 0.0 < fraction <= 1.0:  # NaN too
        raise ValueError(f"schedule: {name} is {fraction:g}, expected a fraction in (0, 1]")
    return fraction


def _falling(keep: Any) -> tuple[float, ...]:
    """The fractions of layers. Raises as :meth:`Schedule.per_layer` says."""
    if not isinstance(keep, Iterable):
        raise TypeError(f"schedule: keep is {keep!r}, expected a fraction for each layer")
    layers = tuple(_fraction(f"keep of layer {i}", value) for i, value in enumerate(keep))
    if layers and layers[0] != 1.0:
        raise ValueError(
            f"schedule: keep of layer 0 is {layers[0]:g}, expected 1: no importance is known "
            f"before it"
        )
    for i in range(1, len(layers)):
        if layers[i] > layers[i - 1]:
            raise ValueError(
                f"schedule: keep of layer {i} is {layers[i]:g}, expected at most "
                f"{layers[i - 1]:g}: what is dropped does not come back"
            )
    return layers


def _by_length(average: Any) -> Averages:
    """From a mapping, pairs or a function. Raises as :meth:`Schedule.by_length` says."""
    if callable(average) and not isinstance(average, Mapping):
        return average  # type: ignore[no-any-return]
    try:
        points = dict(average)
    except (TypeError, ValueError):
        raise TypeError(
            f"schedule: average is a {type(average).__name__}, expected a mapping from lengths "
            f"or a function"
        ) from None
    if not points:
        raise ValueError("schedule: average has no length, expected at least one")
    for length in points:
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ValueError(
                f"schedule: average has a length of {length!r}, expected whole numbers of "
                f"at least 1"
            )
    return tuple(
        (length, _fraction(f"average at length {length}", points[length]))
        for length in sorted(points)
    )


@dataclass(frozen=True)
class Schedule:
    """What fraction of an input's tokens, or of a model's heads, each layer works on.

    Make one with :meth:`linear`, :meth:`per_layer` or :meth:`by_length`. Layer 0 works on all of
    them, for nothing is known of their importance before it, and no layer works on more than the
    one before. A layer's importance is summed up in it, so the selection for layer i + 1 is made
    after layer i. Fractions are of an input's own tokens: padding counts nowhere.

    >>> Schedule.linear(0.5).tokens(100, n_layers=6)
    (100, 60, 50, 40, 30, 20)
    >>> Schedule.per_layer([1, 0.75, 0.5]).heads(12, n_layers=3, length=100)
    (12, 9, 6)
    """

    average: float | None = None
    start: float | None = None
    whole: float | None = None
    layers: tuple[float, ...] | None = None
    averages: Averages | None = None

    def __post_init__(self) -> None:
        given = [n for n in ("average", "layers", "averages") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(
                f"schedule: {' and '.join(given) or 'nothing'} is given, expected one of average, "
                f"layers and averages"
            )
        checked: dict[str, Any] = {
            name: _fraction(name, getattr(self, name))
            for name in ("average", "start", "whole")
            if getattr(self, name) is not None
        }
        if self.layers is not None:
            checked["layers"] = _falling(self.layers)
        if self.averages is not None:
            checked["averages"] = _by_length(self.averages)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @classmethod
    def linear(
        cls, average: float, *, start: float | None = None, whole: float | None = None
    ) -> Schedule:
        """The first layers whole, from there linear, ``average`` over all layers.

        Parameters
        ----------
        average : what is kept, averaged over all layers, the whole ones included
        start : what the first layer that drops something keeps; the last one's follows from the
            average. Default: half as much again as the mean of these layers, but at most all
        whole : the fraction of the layers that is left whole, rounded up to at least one layer;
            default 0.15 for tokens, 0.30 for heads

        Raises ValueError for what is outside (0, 1] here, and for an average that the model's
        layers cannot have once their number is known.

        >>> [round(keep, 2) for keep in Schedule.linear(0.5).keep(12)]
        [1.0, 1.0, 0.6, 0.56, 0.51, 0.47, 0.42, 0.38, 0.33, 0.29, 0.24, 0.2]
        """
        return cls(average=_fraction("average", average), start=start, whole=whole)

    @classmethod
    def per_layer(cls, keep: Sequence[float]) -> Schedule:
        """The fraction for each layer of the model as it runs: 1 for the first, never rising.

        Raises ValueError for fractions outside (0, 1], a first one below 1 and one above the one
        before, TypeError for what are no fractions; a length other than the model's is refused
        where the model is known.
        """
        return cls(layers=_falling(keep))

    @classmethod
    def by_length(
        cls,
        average: Mapping[int, float] | Callable[[int], float],
        *,
        whole: float | None = None,
    ) -> Schedule:
        """Linear with an average that depends on the input's length in tokens.

        Longer inputs can spare more: SpAtten drops under 15 % of 12 tokens and over 70 % of 1000.

        Parameters
        ----------
        average : length → average keep, linear between these lengths and constant beyond; or a
            function of the length, which is at least 1
        whole : as in :meth:`linear`

        >>> Schedule.by_length({12: 0.9, 100: 0.5}).tokens(56, n_layers=3)
        (56, 46, 15)
        """
        return cls(averages=_by_length(average), whole=whole)

    # ---- for a model ----------------------------------------------------------------------------

    def keep(
        self, n_layers: int, *, unit: Unit = "tokens", length: int | None = None
    ) -> tuple[float, ...]:
        """The fraction that each of ``n_layers`` layers works on.

        ``length``, the input's in tokens, is needed by a schedule by length alone. Raises
        ValueError where the schedule does not fit ``n_layers``.
        """
        if self.layers is not None:
            if len(self.layers) != n_layers:
                raise ValueError(
                    f"schedule: keep has {len(self.layers)} layers, expected {n_layers}"
                )
            return self.layers
        average = self.average if self.averages is None else self._average_at(length)
        assert average is not None
        return self._linear(average, n_layers, WHOLE[unit] if self.whole is None else self.whole)

    def _average_at(self, length: int | None) -> float:
        if length is None:
            raise ValueError("schedule: length is None, expected the input's tokens")
        length = max(1, length)  # of no tokens none are kept, whatever is said
        if callable(self.averages):
            return _fraction(f"average at length {length}", self.averages(length))
        assert self.averages is not None
        points = self.averages
        if length <= points[0][0]:
            return points[0][1]
        for (low, at_low), (high, at_high) in pairwise(points):
            if length <= high:
                return at_low + (at_high - at_low) * (length - low) / (high - low)
        return points[-1][1]

    def _linear(self, average: float, n_layers: int, whole: float) -> tuple[float, ...]:
        # 0.15 of 20 layers are 3, whatever the product's last bit says.
        n_whole = min(n_layers, max(1, math.ceil(whole * n_layers - 1e-9)))
        n_falling = n_layers - n_whole
        if average == 1.0 or n_falling <= 0:
            if average < 1.0:
                raise ValueError(
                    f"schedule: average is {average:g}, expected 1: all {n_layers} layers are whole"
                )
            return (1.0,) * n_layers
        mean = (average * n_layers - n_whole) / n_falling
        if mean <= 0.0:
            raise ValueError(
                f"schedule: average is {average:g}, expected more than {n_whole / n_layers:.3g}, "
                f"for {n_whole} of {n_layers} layers are whole"
            )
        start = min(1.0, 1.5 * mean) if self.start is None else self.start
        end = 2.0 * mean - start
        if n_falling == 1:
            return (1.0,) * n_whole + (mean,)
        if not 0.0 < end <= start:
            raise ValueError(
                f"schedule: start is {start:g}, expected {mean:.3g} to less than "
                f"{min(1.0, 2.0 * mean):.3g} for an average of {average:g} over {n_layers} layers"
            )
        step = (end - start) / (n_falling - 1)
        return (1.0,) * n_whole + tuple(start + step * i for i in range(n_falling))

    def tokens(self, length: int, *, n_layers: int) -> tuple[int, ...]:
        """With how many of an input's ``length`` tokens each layer works."""
        return self._counts(length, n_layers, "tokens", length)

    def heads(self, n_heads: int, *, n_layers: int, length: int) -> tuple[int, ...]:
        """With how many of ``n_heads`` heads each layer works on an input of ``length`` tokens."""
        return self._counts(n_heads, n_layers, "heads", length)

    def _counts(self, n: int, n_layers: int, unit: Unit, length: int) -> tuple[int, ...]:
        # A function need not give the same twice, nor have a hash.
        counts = _counts if callable(self.averages) else _remembered_counts
        return counts(self, n, n_layers, unit, length)

    # ---- on disk --------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form; :meth:`from_dict` reads it back.

        Raises TypeError for a schedule by a function of the length, which no file can hold.
        """
        if callable(self.averages):
            raise TypeError("schedule: a function of the length cannot be written to a file")
        data: dict[str, Any] = {
            "average": self.average,
            "start": self.start,
            "whole": self.whole,
            "layers": None if self.layers is None else list(self.layers),
            "averages": None if self.averages is None else [list(p) for p in self.averages],
        }
        return {name: value for name, value in data.items() if value is not None}

    @classmethod
    def from_dict(cls, data: Any, *, source: str = "schedule") -> Schedule:
        """Read what :meth:`to_dict` wrote; ``source`` names the origin in errors (ValueError)."""
        try:
            given = dict(data)
            if "layers" in given:
                return cls.per_layer(given["layers"])
            if "averages" in given:
                return cls.by_length(dict(given["averages"]), whole=given.get("whole"))
            return cls.linear(given["average"], start=given.get("start"), whole=given.get("whole"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{source}: the schedule is damaged ({error})") from None


def _counts(schedule: Schedule, n: int, n_layers: int, unit: Unit, length: int) -> tuple[int, ...]:
    counts: list[int] = kept_count(schedule.keep(n_layers, unit=unit, length=length), n).tolist()
    return tuple(counts)


_remembered_counts = lru_cache(maxsize=4096)(_counts)
