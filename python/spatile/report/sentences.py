"""What a model with schedules keeps of some rows of the data that it is scored on."""

from __future__ import annotations

import html
from typing import Any, Protocol

import numpy as np

from spatile.inference import Encoder
from spatile.report.masks import masks_section

__all__ = ["model_sections", "prunes"]

_ROWS = 6


class _Examples(Protocol):
    @property
    def texts(self) -> list[str]: ...
    @property
    def pairs(self) -> list[str] | None: ...
    @property
    def labels(self) -> np.ndarray[Any, Any]: ...


class _Task(Protocol):
    """What is needed of a data set: its dev rows, and the names of its classes."""

    @property
    def kind(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def dev(self) -> _Examples: ...


def prunes(encoder: Encoder) -> bool:
    """Whether the encoder has a schedule."""
    return encoder.tokens is not None or encoder.heads is not None


def model_sections(encoder: Encoder, task: _Task | str | None) -> list[str]:
    """A report's parts that show the packed model itself, as HTML.

    Masks of its matrices; and where it has schedules, what it keeps of some of ``task``'s dev rows
    (a text instead says why there are none).
    """
    return masks_section(encoder) + (_sentences(encoder, task) if prunes(encoder) else [])


def _sentences(encoder: Encoder, task: _Task | str | None) -> list[str]:
    parts = ["<h2>Words and heads that each layer works on</h2>"]
    if task is None or isinstance(task, str):
        return [*parts, f"<p class='note'>No sentences: {html.escape(task or 'no data')}</p>"]
    dev = task.dev
    # Evenly over the file, which may be sorted.
    for row in np.unique(np.linspace(0, len(dev.texts) - 1, _ROWS).astype(int)).tolist():
        label = dev.labels[row]
        known = task.labels[int(label)] if task.kind == "classification" else f"{label:g}"
        pair = None if dev.pairs is None else dev.pairs[row]
        parts.append(f"<h3>Row {row + 1} of dev, whose label is {html.escape(known)}</h3>")
        parts.append(encoder.explain(dev.texts[row], pair).to_html())
    return parts
