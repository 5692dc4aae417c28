"""A point of a sweep's grid without its seed, and how it is called in rows and messages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["AS_IS", "METHOD_NAME", "Configuration"]

#: Names of methods stand in commands and in names of folders.
METHOD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")

#: What the method that trains nothing changes of the settings of ``spatile finetune``.
AS_IS: Mapping[str, Any] = {"epochs_reweighted": 0.0, "epochs_retrain": 0.0}


class Configuration(NamedTuple):
    """What is pruned and how.

    >>> Configuration("tile", "default", 0.5).with_seed(0)
    'tile default 0.5 seed 0'
    >>> Configuration("tile", "as-is", 0.0, keep_tokens=0.5, keep_heads=0.75).name
    'tile as-is 0 tokens 0.5 heads 0.75'
    """

    pattern: str
    method: str
    sparsity: float
    keep_tokens: float = 1.0
    keep_heads: float = 1.0

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Configuration:
        """That of a row (:mod:`spatile.sweep.rows`)."""
        return cls(*(row[name] for name in cls._fields))

    @property
    def name(self) -> str:
        """Its name; what keeps all tokens or heads does not say so."""
        words = [self.pattern, self.method, f"{self.sparsity:g}"]
        words += [] if self.keep_tokens == 1.0 else [f"tokens {self.keep_tokens:g}"]
        words += [] if self.keep_heads == 1.0 else [f"heads {self.keep_heads:g}"]
        return " ".join(words)

    def with_seed(self, seed: int) -> str:
        """The name of its model of a seed."""
        return f"{self.name} seed {seed}"
