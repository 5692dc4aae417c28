"""Calls that an op refuses by name: the error's type, the op and the argument at fault."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import spatile as sp

NAN = float("nan")
Refusal = tuple[str, tuple[Any, ...], dict[str, Any], Any, str]
"""Op, arguments, options, error or errors, and how the message goes on after "op: "."""


def read_only(x: np.ndarray) -> np.ndarray:
    copy = x.copy()
    copy.setflags(write=False)
    return copy


def described(case: Refusal) -> str:
    shapes = ",".join(
        f"{x.dtype}{list(x.shape)}" if hasattr(x, "shape") else repr(x)[:9] for x in case[1]
    )
    return f"{case[0]}-{shapes}-{','.join(case[2])}"


def assert_refused(case: Refusal) -> None:
    op, arguments, options, error, argument = case
    with pytest.raises(error, match=rf"^{op}: ({argument})\b"):
        getattr(sp, op)(*arguments, **options)
