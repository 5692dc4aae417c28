"""A packed model keeps its schedules: what it was trained with is what it runs with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spatile.inference import Encoder
from spatile.sparsity import Schedule

from .conftest import PAIRS, TEXTS, make_model, save

TOKENS, HEADS = Schedule.linear(0.6), Schedule.per_layer([1, 0.75, 0.5])


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A packed BERT of three layers that was saved with schedules."""
    dense = save(make_model("bert"), tmp_path / "dense")
    Encoder.load(dense, tokens=TOKENS, heads=HEADS).save(tmp_path / "packed")
    return tmp_path / "packed"


def edit(packed: Path, **changes: Any) -> Path:
    manifest = json.loads((packed / "spatile.json").read_text("utf-8"))
    (packed / "spatile.json").write_text(json.dumps({**manifest, **changes}), encoding="utf-8")
    return packed


def test_what_was_saved_is_what_runs(packed: Path) -> None:
    given = Encoder.load(packed.parent / "dense", tokens=TOKENS, heads=HEADS)
    stored = Encoder.load(packed)
    assert (stored.tokens, stored.heads) == (TOKENS, HEADS)
    a, b = given.predict(TEXTS, PAIRS), stored.predict(TEXTS, PAIRS)
    np.testing.assert_array_equal(a.logits, b.logits)
    assert a.cost is not None
    assert a.cost == b.cost
    assert a.cost.reduction > 1.2
    manifest = json.loads((packed / "spatile.json").read_text("utf-8"))
    assert manifest["schedules"] == {"tokens": TOKENS.to_dict(), "heads": HEADS.to_dict()}


def test_what_is_given_replaces_what_is_stored_one_by_one(packed: Path) -> None:
    one = Encoder.load(packed, tokens=Schedule.linear(1.0))
    assert (one.tokens, one.heads) == (Schedule.linear(1.0), HEADS)
    off = Encoder.load(packed, tokens=Schedule.linear(1.0), heads=Schedule.linear(1.0))
    dense = Encoder.load(packed.parent / "dense")
    np.testing.assert_array_equal(off.predict(TEXTS).logits, dense.predict(TEXTS).logits)
    assert off.predict(TEXTS).cost == dense.predict(TEXTS).cost


def test_a_model_without_schedules_is_written_as_before(packed: Path) -> None:
    plain = packed.parent / "plain"
    Encoder.load(packed.parent / "dense").save(plain)
    manifest = json.loads((plain / "spatile.json").read_text("utf-8"))
    assert manifest["schedules"] == {"tokens": None, "heads": None}
    assert manifest["version"] == 1
    del manifest["schedules"]  # as files of before have it
    (plain / "spatile.json").write_text(json.dumps(manifest), encoding="utf-8")
    loaded = Encoder.load(plain)
    assert (loaded.tokens, loaded.heads) == (None, None)
    # A reader that knows no schedules must refuse what it would compute otherwise.
    assert json.loads((packed / "spatile.json").read_text("utf-8"))["version"] == 3


def test_a_function_cannot_be_saved_and_nothing_is_written(packed: Path) -> None:
    by_function = Schedule.by_length(lambda n: 0.9 if n < 20 else 0.5)
    encoder = Encoder.load(packed, tokens=by_function)
    with pytest.raises(TypeError, match=r"Encoder\.save: tokens: schedule: a function"):
        encoder.save(packed.parent / "new")
    assert not (packed.parent / "new").exists()


@pytest.mark.parametrize(
    ("schedules", "message"),
    [
        ([], r"spatile\.json: schedules is \[\], expected an object"),
        ({"tokens": 3}, r"spatile\.json: schedules\.tokens: the schedule is damaged"),
        ({"heads": {"average": 7}}, r"spatile\.json: schedules\.heads: .*average is 7"),
        ({"tokens": {"layers": [1, 0.5]}}, "keep has 2 layers, expected 3"),
    ],
)
def test_damaged_schedules_are_named(packed: Path, schedules: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoder.load(edit(packed, schedules=schedules))
