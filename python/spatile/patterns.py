"""Pruning patterns: how a weight matrix (out, in) is cut into groups that live or die together.

Every pattern is a grid of equal rectangles; the last row and column of rectangles may overhang the
matrix, and what overhangs counts nowhere. Source: E.T. (SC 2021), section on tensor-tile pruning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

__all__ = ["Column", "Element", "Head", "Pattern", "Row", "Tile", "as_pattern"]


def _positive(owner: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{owner}: {name} is {value!r}, expected a positive integer")


class Pattern:
    """Base of the patterns. Frozen, hashable; ``str(p)`` parses back with :func:`as_pattern`."""

    def group_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of one group of a matrix of this ``shape``, at least (1, 1)."""
        raise NotImplementedError

    def mask_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Groups along (out, in): the shape of norms, β and masks for a matrix of ``shape``."""
        rows, cols = self.group_shape(shape)
        return -(-shape[0] // rows), -(-shape[1] // cols)


@dataclass(frozen=True)
class Tile(Pattern):
    """Blocks of ``rows`` outputs by ``cols`` inputs: what the tile-sparse product skips."""

    rows: int = 16
    cols: int = 16

    def __post_init__(self) -> None:
        _positive("Tile", "rows", self.rows)
        _positive("Tile", "cols", self.cols)

    def group_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        return self.rows, self.cols

    def __str__(self) -> str:
        return f"tile:{self.rows}x{self.cols}"


@dataclass(frozen=True)
class Row(Pattern):
    """Whole output rows."""

    def group_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        return 1, max(1, shape[1])

    def __str__(self) -> str:
        return "row"


@dataclass(frozen=True)
class Column(Pattern):
    """Whole input columns."""

    def group_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        return max(1, shape[0]), 1

    def __str__(self) -> str:
        return "column"


@dataclass(frozen=True)
class Element(Pattern):
    """Single weights (irregular sparsity): the accuracy reference."""

    def group_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        return 1, 1

    def __str__(self) -> str:
        return "element"


@dataclass(frozen=True)
class Head(Pattern):
    """``width`` neighbouring rows (``axis="out"``: Q, K, V) or columns (``axis="in"``: O)."""

    width: int
    axis: Literal["out", "in"] = "out"

    def __post_init__(self) -> None:
        _positive("Head", "width", self.width)
        if self.axis not in ("out", "in"):
            raise ValueError(f"Head: axis is {self.axis!r}, expected 'out' or 'in'")

    def group_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        if self.axis == "out":
            return self.width, max(1, shape[1])
        return max(1, shape[0]), self.width

    def __str__(self) -> str:
        return f"head:{self.width}" if self.axis == "out" else f"head:{self.width}:in"


PatternLike = Pattern | str

_SPELLING = re.compile(
    r"(?:(?P<plain>row|column|element|tile)"
    r"|tile:(?P<rows>\d+)x(?P<cols>\d+)"
    r"|head:(?P<width>\d+)(?::(?P<axis>in|out))?)\Z"
)


def as_pattern(pattern: PatternLike) -> Pattern:
    """The pattern that a string spells: ``"tile"``, ``"tile:32x16"``, ``"row"``, ``"column"``,
    ``"element"``, ``"head:64"``, ``"head:64:in"``. A pattern passes through.

    Raises ValueError for another spelling, TypeError for another kind of object.

    >>> as_pattern("tile:32x16")
    Tile(rows=32, cols=16)
    """
    if isinstance(pattern, Pattern):
        return pattern
    if not isinstance(pattern, str):
        raise TypeError(f"pattern is a {type(pattern).__name__}, expected a pattern or its name")
    match = _SPELLING.match(pattern)
    if match is None:
        raise ValueError(
            f"pattern is {pattern!r}, expected 'tile', 'tile:RxC', 'row', 'column', 'element', "
            f"'head:W' or 'head:W:in'"
        )
    plain: dict[str, Pattern] = {
        "tile": Tile(),
        "row": Row(),
        "column": Column(),
        "element": Element(),
    }
    if match["plain"]:
        return plain[match["plain"]]
    if match["rows"]:
        return Tile(int(match["rows"]), int(match["cols"]))
    return Head(int(match["width"]), "in" if match["axis"] == "in" else "out")
