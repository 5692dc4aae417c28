"""Telling how far a run is: bars on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

__all__ = ["Progress"]

_SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Writes to ``stream`` (standard error by default); nothing where ``quiet``."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._quiet = quiet
        self._bar: Any = None
        self._title = ""
        self._total = 0
        self._done = 0
        self._last_line = 0.0

    def say(self, text: str) -> None:
        """One line."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.clear()
        self._stream.write(text + "\n")
        self._stream.flush()

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """A stage of ``total`` steps begins, ``done`` of which are behind us."""
        self.end()
        self._title, self._total, self._done = title, total, done
        self._last_line = time.monotonic()
        if self._quiet or total <= 0:
            return
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=done, desc=title, file=self._stream, leave=True, unit="step"
            )

    def advance(self, loss: float | None = None) -> None:
        """One step more; ``loss`` is shown where it is known."""
        self._done += 1
        if self._bar is not None:
            if loss is not None:
                self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            self._bar.update(1)
            return
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            shown = "" if loss is None else f", loss {loss:.3f}"
            self.say(f"{self._title}: step {self._done}/{self._total}{shown}")

    def end(self) -> None:
        """The stage is over."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
