"""What topk, select_tokens and gather_tokens refuse, by name."""

from __future__ import annotations

import numpy as np
import pytest

from .arrays import normal
from .refusals import NAN, Refusal, assert_refused, described

X = normal((5, 33))
ENDS = np.array([0, 5, 33])
REFUSED: list[Refusal] = [
    ("topk", (X, 34), {}, ValueError, "k"),
    ("topk", (X, -1), {}, ValueError, "k"),
    ("topk", (X, 1.5), {}, TypeError, "k"),
    ("topk", (X.astype(np.int64), 1), {}, TypeError, "scores"),
    ("topk", (np.array([1, NAN, 2], np.float32), 1), {}, ValueError, "scores"),
    ("topk", (X, 1), {"offsets": np.array([0, 5])}, ValueError, "scores|offsets"),
    ("topk", (X[0], 1), {"offsets": np.array([0, 5])}, ValueError, "offsets"),
    ("topk", (X[0], 1), {"offsets": np.array([0, 20, 5, 33])}, ValueError, "offsets"),
    ("topk", (X[0], 3), {"offsets": np.array([0, 2, 33])}, ValueError, "k"),
    ("topk", (X[0], np.array([1, 1, 1])), {"offsets": np.array([0, 2, 33])}, ValueError, "k"),
    *(
        (
            "select_tokens",
            (X[0], keep),
            {"offsets": ENDS},
            ValueError,
            "keep is .*, expected a fraction",
        )
        for keep in (0.0, -1.0, 1.01, 2, NAN, np.array([0.5, 0.0]))
    ),
    *(
        ("select_tokens", (X[0], keep), {"offsets": ENDS}, TypeError, "keep")
        for keep in ("half", None, True)
    ),
    ("select_tokens", (X[0], 0.5), {"offsets": 33}, ValueError, r"offsets\.shape is"),
    ("topk", (X[0], 1), {"offsets": 33}, ValueError, r"offsets\.shape is"),
    ("select_tokens", (X[0], [0.5] * 3), {"offsets": ENDS}, ValueError, r"keep\.shape is \(3"),
    ("select_tokens", (X, 0.5), {"offsets": ENDS}, ValueError, r"importance\.shape is \(5, 33"),
    ("select_tokens", (X[0, 1:], 0.5), {"offsets": ENDS}, ValueError, r"importance\.shape is"),
    ("select_tokens", (X[0] * NAN, 0.5), {"offsets": ENDS}, ValueError, "importance holds NaN"),
    ("select_tokens", (X[0].astype(np.float64), 0.5), {"offsets": ENDS}, TypeError, "importance"),
    ("select_tokens", ("text", 0.5), {"offsets": ENDS}, TypeError, "importance"),
    ("select_tokens", (X[0], 0.5), {"offsets": np.array([0, 9, 5, 33])}, ValueError, "offsets"),
    ("select_tokens", (X[0], 0.5), {"offsets": np.array([1, 33])}, ValueError, r"offsets\[0"),
    ("select_tokens", (X[0], 0.5), {"offsets": np.array([0.5])}, TypeError, "offsets"),
    ("select_tokens", (X[0], 0.5), {"offsets": np.empty(0, int)}, ValueError, "offsets"),
    *(
        (
            "select_tokens",
            (X[0], 0.5),
            {"offsets": ENDS, "protect": position},
            ValueError,
            "protect holds position .*, sequence 0 has 5 tokens",
        )
        for position in (np.array([5]), np.array([-6]), (0, 31))
    ),
    (
        "select_tokens",
        (X[0], 0.5),
        {"offsets": ENDS, "protect": np.ones(32, bool)},
        ValueError,
        r"protect\.shape is \(32,\), expected \(33",
    ),
    ("select_tokens", (X[0], 0.5), {"offsets": ENDS, "protect": [0.5]}, TypeError, "protect"),
    ("select_tokens", (X[0], 0.5), {"offsets": ENDS, "lengths": [5, 27]}, ValueError, "lengths"),
    ("select_tokens", (X[0], 0.5), {"offsets": ENDS, "lengths": [5]}, ValueError, "lengths"),
    ("gather_tokens", (X, np.array([0, 5])), {}, ValueError, r"index\[1\] is 5, expected 0 to 4"),
    ("gather_tokens", (X, np.array([-1])), {}, ValueError, r"index\[0\] is -1"),
    ("gather_tokens", (X, np.array([0.0])), {}, TypeError, "index"),
    ("gather_tokens", (X, np.array([[0]])), {}, ValueError, "index"),
    ("gather_tokens", (X.astype(np.float64), np.array([0])), {}, TypeError, "x"),
    ("gather_tokens", (np.float32(1), np.array([0])), {}, TypeError, "x"),
    ("gather_tokens", (np.ones((), np.float32), np.array([0])), {}, ValueError, "x"),
]


@pytest.mark.parametrize("case", REFUSED, ids=described)
def test_bad_input_is_refused_by_name(case: Refusal) -> None:
    assert_refused(case)
