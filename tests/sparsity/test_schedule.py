"""Schedule: how many tokens or heads each layer works on."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from spatile.sparsity import Schedule

NAN = float("nan")


@given(
    average=st.floats(0.05, 1.0),
    n_layers=st.integers(2, 40),
    unit=st.sampled_from(["tokens", "heads"]),
)
def test_a_linear_schedule_is_what_the_paper_says(average: float, n_layers: int, unit: Any) -> None:
    """The first layers whole, then a line, r_start + r_end twice the mean; the average over all."""
    first = math.ceil({"tokens": 0.15, "heads": 0.30}[unit] * n_layers - 1e-9)
    assume(average > (first + 0.01) / n_layers)
    keep = Schedule.linear(average).keep(n_layers, unit=unit)
    assert len(keep) == n_layers
    assert all(0.0 < k <= 1.0 for k in keep)
    assert keep[:first] == (1.0,) * first
    assert sum(keep) / n_layers == pytest.approx(average)
    falling = keep[first:]
    steps = [a - b for a, b in pairwise(falling)]
    assert all(step == pytest.approx(steps[0]) and step >= -1e-12 for step in steps)
    assert falling[0] + falling[-1] == pytest.approx(2 * sum(falling) / len(falling))


def test_published_depths() -> None:
    """15 % of 12 layers are 2, 30 % are 4; of 20 layers exactly 3 and 6."""
    schedule = Schedule.linear(0.6)
    for n_layers, tokens, heads in ((12, 2, 4), (20, 3, 6), (24, 4, 8), (6, 1, 2)):
        assert schedule.keep(n_layers).count(1.0) == tokens
        assert schedule.keep(n_layers, unit="heads").count(1.0) == heads


def test_where_it_starts_and_how_much_is_whole() -> None:
    assert Schedule.linear(0.5, start=0.4).keep(6) == pytest.approx((1, 0.4, 0.4, 0.4, 0.4, 0.4))
    assert Schedule.linear(0.7, start=0.5, whole=0.5).keep(4) == pytest.approx((1, 1, 0.5, 0.3))
    assert Schedule.linear(0.75, whole=0.1).keep(2) == (1.0, 0.5)
    assert Schedule.linear(1.0).keep(3) == (1.0, 1.0, 1.0)


def test_counts_round_half_up_and_are_at_least_one() -> None:
    schedule = Schedule.per_layer([1, 0.5, 0.1])
    assert schedule.tokens(5, n_layers=3) == (5, 3, 1)
    assert schedule.tokens(1, n_layers=3) == (1, 1, 1)
    assert schedule.tokens(0, n_layers=3) == (0, 0, 0)
    assert schedule.heads(12, n_layers=3, length=7) == (12, 6, 1)


@given(
    n=st.integers(0, 600),
    falls=st.lists(st.floats(0.01, 1.0), max_size=8),
)
def test_counts_never_rise(n: int, falls: list[float]) -> None:
    keep = [1.0, *sorted(falls, reverse=True)]
    counts = Schedule.per_layer(keep).tokens(n, n_layers=len(keep))
    assert counts[0] == n
    assert all(a >= b >= min(1, n) for a, b in pairwise(counts))


def test_by_length() -> None:
    """Linear between the lengths given, constant beyond; or whatever a function says."""
    table = Schedule.by_length({12: 0.9, 112: 0.5})
    rule = Schedule.by_length(lambda n: 0.9 - 0.004 * (min(112, max(12, n)) - 12))
    for length, average in ((3, 0.9), (12, 0.9), (62, 0.7), (112, 0.5), (500, 0.5)):
        expected = pytest.approx(Schedule.linear(average).keep(6))
        assert table.keep(6, length=length) == expected
        assert rule.keep(6, length=length) == expected
    assert table.heads(8, n_layers=6, length=500) == Schedule.linear(0.5).heads(
        8, n_layers=6, length=1
    )


def test_no_function_is_asked_about_no_tokens() -> None:
    schedule = Schedule.by_length(lambda n: max(0.4, min(1.0, 20 / n)))
    assert schedule.tokens(0, n_layers=3) == (0, 0, 0)
    assert schedule.heads(8, n_layers=3, length=0) == (8, 8, 8)


def test_a_function_is_asked_each_time_and_needs_no_hash() -> None:
    class Dial:
        average = 1.0
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, length: int) -> float:
            return self.average

    dial = Dial()
    schedule = Schedule.by_length(dial)
    assert schedule.tokens(10, n_layers=2) == (10, 10)
    dial.average = 0.75
    assert schedule.tokens(10, n_layers=2) == (10, 5)


def test_numpys_numbers_are_numbers() -> None:
    assert Schedule.linear(np.float32(0.5)) == Schedule.linear(0.5)
    assert Schedule.per_layer(np.array([1, 0.5], np.float32)) == Schedule.per_layer([1, 0.5])
    by_length = Schedule.by_length(lambda n: np.float32(0.75))
    assert by_length.tokens(8, n_layers=2) == (8, 4)


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule.linear(0.5),
        Schedule.linear(0.7, start=0.9, whole=0.25),
        Schedule.per_layer([1, 0.5]),
        Schedule.by_length({10: 0.9, 100: 0.4}, whole=0.2),
    ],
)
def test_a_file_holds_it(schedule: Schedule) -> None:
    assert Schedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule


def test_what_no_file_can_hold() -> None:
    with pytest.raises(TypeError, match="function of the length"):
        Schedule.by_length(lambda n: 0.5).to_dict()
    for damaged in (None, {}, {"average": "half"}, {"layers": [0.5]}, {"averages": [[1]]}):
        with pytest.raises(ValueError, match=r"run\.json: the schedule is damaged"):
            Schedule.from_dict(damaged, source="run.json")


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.5, NAN, float("inf")])
def test_fractions_outside_are_refused_by_name(keep: float) -> None:
    with pytest.raises(ValueError, match=r"schedule: average is .*, expected a fraction in \(0, 1"):
        Schedule.linear(keep)
    with pytest.raises(ValueError, match=r"schedule: keep of layer 1 is .*, expected a fraction"):
        Schedule.per_layer([1, keep])
    with pytest.raises(ValueError, match=r"schedule: average at length 9 is"):
        Schedule.by_length({9: keep})
    with pytest.raises(ValueError, match=r"schedule: average at length 9 is"):
        Schedule.by_length(lambda n: keep).tokens(9, n_layers=3)
    with pytest.raises(ValueError, match=r"schedule: start is"):
        Schedule.linear(0.5, start=keep)


def test_made_directly_it_is_checked_alike() -> None:
    for made, expected in (
        (Schedule(layers=[1, 0.5]), Schedule.per_layer([1, 0.5])),  # type: ignore[arg-type]
        (Schedule(averages=[[9, 1], [4, 0.7]]), Schedule.by_length({4: 0.7, 9: 1.0})),  # type: ignore[arg-type]
        (Schedule(averages={9: 0.7}), Schedule.by_length({9: 0.7})),  # type: ignore[arg-type]
        (Schedule(average=np.float32(0.75)), Schedule.linear(0.75)),  # type: ignore[arg-type]
    ):
        assert made == expected
        assert hash(made) == hash(expected)
        assert made.tokens(9, n_layers=2) == expected.tokens(9, n_layers=2)
    with pytest.raises(ValueError, match=r"schedule: nothing is given, expected one of average, l"):
        Schedule()
    with pytest.raises(ValueError, match=r"schedule: average and layers is given, expected one"):
        Schedule(average=0.5, layers=(1.0, 0.5))
    with pytest.raises(ValueError, match=r"schedule: keep of layer 0 is 0\.5, expected 1"):
        Schedule(layers=(0.5,))
    with pytest.raises(TypeError, match=r"schedule: averages? is a float, expected a mapping"):
        Schedule(averages=0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"schedule: whole is 'half', expected a fraction"):
        Schedule(average=0.5, whole="half")  # type: ignore[arg-type]


def test_other_nonsense_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"schedule: average is '0\.5'"):
        Schedule.linear("0.5")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"schedule: average is True"):
        Schedule.linear(True)
    with pytest.raises(TypeError, match=r"schedule: keep is 0\.5, expected a fraction for each"):
        Schedule.per_layer(0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"keep of layer 0 is 0\.5, expected 1"):
        Schedule.per_layer([0.5, 0.5])
    with pytest.raises(ValueError, match=r"keep of layer 2 is 0\.6, expected at most 0\.5"):
        Schedule.per_layer([1, 0.5, 0.6])
    with pytest.raises(ValueError, match=r"keep has 2 layers, expected 12"):
        Schedule.per_layer([1, 0.5]).tokens(9, n_layers=12)
    with pytest.raises(ValueError, match=r"average is 0\.1, expected more than 0\.167"):
        Schedule.linear(0.1).tokens(9, n_layers=12)
    with pytest.raises(ValueError, match=r"average is 0\.5, expected 1: all 1 layers are whole"):
        Schedule.linear(0.5).tokens(9, n_layers=1)
    with pytest.raises(ValueError, match=r"start is 0\.9, expected 0\.4 to less than 0\.8"):
        Schedule.linear(0.5, start=0.9).keep(6)
    with pytest.raises(ValueError, match="no length"):
        Schedule.by_length({})
    with pytest.raises(ValueError, match=r"a length of 0\.5"):
        Schedule.by_length({0.5: 0.5})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="mapping from lengths"):
        Schedule.by_length(0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="length is None"):
        Schedule.by_length({9: 0.5}).keep(3)
