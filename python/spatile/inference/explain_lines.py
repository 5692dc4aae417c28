"""Text in lines of so many columns, as a terminal counts them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum

__all__ = ["JOINERS", "Parting", "Span", "columns", "filled", "words_of"]

#: Zero-width non-joiner and joiner: Persian words and emoji of several people have them.
JOINERS = "\u200c\u200d"
_END = "\x1b[0m"


class Parting(IntEnum):
    """What stands before a text: nothing; nothing, but a line may end there; a space."""

    NONE = 0
    BREAK = 1
    SPACE = 2


Span = tuple[Parting, str, str]
"""What stands before a text, the text, and the escape code that it is written with, or ""."""


def columns(text: str) -> int:
    """How many columns a terminal needs at most: two for a wide character, none for a mark.

    >>> columns("caf\u00e9"), columns("cafe\u0301"), columns("電影")
    (4, 4, 4)
    """
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(c: str) -> int:
    if unicodedata.category(c) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(c) in "WF" else 1


def _may_part(before: str, after: str) -> bool:
    """Whether a line may end between two characters: wide ones, but for their punctuation."""
    if _columns(before) != 2 or _columns(after) != 2:
        return False
    left, right = unicodedata.category(before), unicodedata.category(after)
    closes = right in ("Pe", "Pf", "Po", "Sk", "Lm") and not left.startswith("P")
    return not closes and left not in ("Ps", "Pi")


def _parts(text: str) -> Iterator[str]:
    """``text`` where lines may end in it."""
    start = 0
    for i in range(1, 0 if text.isascii() else len(text)):
        if _may_part(text[i - 1], text[i]):
            yield text[start:i]
            start = i
    if text:
        yield text[start:]


@dataclass
class _Block:
    """What no line breaks where it fits in one: its parts, as written, and their columns."""

    space: bool
    parts: list[tuple[int, str]] = field(default_factory=list)

    @property
    def columns(self) -> int:
        return sum(width for width, _ in self.parts)


def _blocks(spans: Iterable[Span]) -> Iterator[_Block]:
    block, last = _Block(False), ""
    for parting, text, code in spans:
        for part in _parts(text):
            if last and (parting != Parting.NONE or _may_part(last, part[0])):
                yield block
                block = _Block(parting == Parting.SPACE)
            block.parts.append((columns(part), f"{code}{part}{_END}" if code else part))
            parting, last = Parting.NONE, part[-1]
    yield block


def filled(spans: Iterable[Span], width: int, *, hang: int = 0) -> list[str]:
    """Lines of as many spans as fit into ``width`` columns, all but the first ``hang`` in.

    What nothing parts is broken between its spans where a line alone does not hold it, and is
    longer than the line where it is one span.
    """
    lines, used = [""], 0
    for block in _blocks(spans):
        pieces = [(block.columns, "".join(written for _, written in block.parts))]
        if pieces[0][0] > width - hang:
            pieces = block.parts
        space = block.space
        for wide, written in pieces:
            if used and used + space + wide > width:
                lines.append(" " * hang)
                used = hang
            elif space:
                lines[-1] += " "
                used += 1
            lines[-1] += written
            used += wide
            space = False
    return lines


def words_of(text: str) -> Iterator[Span]:
    """Its words."""
    return ((Parting.SPACE, word, "") for word in text.split())
