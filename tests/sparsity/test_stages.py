"""Stages in epochs and steps."""

from __future__ import annotations

import math

import pytest

from spatile.sparsity import Stages


def test_epochs_become_steps_with_milestones_inside_the_stage() -> None:
    steps = Stages(dense=1, reweighted=2, retrain=1).resolve(steps_per_epoch=115, max_steps=460)
    assert (steps.dense_end, steps.reweighted_end, steps.total) == (115, 345, 460)
    assert steps.milestones[0] == 115
    assert len(steps.milestones) == 4
    assert all(115 <= m < 345 for m in steps.milestones)
    assert [steps.stage(s) for s in (0, 114, 115, 344, 345)] == [
        "dense",
        "dense",
        "reweighted",
        "reweighted",
        "retrain",
    ]


def test_four_epoch_stage_does_refresh_beta() -> None:
    # With milestones at epochs 4, 8, 12 and 16 a stage of 4 epochs never would.
    steps = Stages(dense=4, reweighted=4, reweight_every=1).resolve(
        steps_per_epoch=10, max_steps=100
    )
    assert steps.milestones == (40, 50, 60, 70)


def test_strength_is_ramped_and_zero_elsewhere() -> None:
    steps = Stages(2, 4, 2, unit="steps", ramp=0.5).resolve(steps_per_epoch=1, max_steps=8)
    assert [steps.strength_factor(s) for s in range(8)] == [0, 0, 0.5, 1, 1, 1, 0, 0]
    at_once = Stages(0, 2, unit="steps", ramp=0).resolve(steps_per_epoch=1, max_steps=2)
    assert [at_once.strength_factor(s) for s in range(2)] == [1, 1]


def test_lr_factor_starts_anew_in_each_stage() -> None:
    steps = Stages(10, 20, 10, unit="steps").resolve(steps_per_epoch=1, max_steps=40)
    factors = [steps.lr_factor(s, warmup=0.2) for s in range(40)]
    assert factors[0] == pytest.approx(1 / 3)
    assert factors[2] == 1.0
    assert factors[10] == pytest.approx(1 / 5)
    assert factors[14] == 1.0
    assert all(0 < f <= 1 for f in factors)
    assert factors[9] < 0.2
    assert factors[29] < 0.1
    assert factors[39] < 0.2


def test_retrain_none_takes_what_is_left() -> None:
    assert Stages(1, 1).resolve(steps_per_epoch=3, max_steps=100).total == 100


def test_run_and_stages_must_agree() -> None:
    with pytest.raises(ValueError, match="pruning is at step 30, but training ends at 20"):
        Stages(1, 2).resolve(steps_per_epoch=10, max_steps=20)
    with pytest.raises(ValueError, match="sum to 40 steps, expected the run's 50"):
        Stages(1, 2, 1).resolve(steps_per_epoch=10, max_steps=50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dense": -1, "reweighted": 1}, "dense"),
        ({"dense": math.nan, "reweighted": 1}, "dense"),
        ({"dense": 1, "reweighted": math.inf}, "reweighted"),
        ({"dense": 1, "reweighted": 1, "unit": "days"}, "unit"),
        ({"dense": 1, "reweighted": 1, "ramp": 1.5}, "ramp"),
        ({"dense": 1, "reweighted": 1, "reweight_every": 0}, "reweight_every"),
        ({"dense": 1.5, "reweighted": 1, "unit": "steps"}, "whole number"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stages(**arguments)  # type: ignore[arg-type]


def test_gradual_pruning_is_cubic_and_ends_where_it_should() -> None:
    stages = Stages(2, 0, 4, prunings=4, gradual=1.5)
    steps = stages.resolve(steps_per_epoch=10, max_steps=60)
    assert steps.prunings == (20, 25, 30, 35)
    assert steps.pruned_at == 35
    shares = [steps.pruned_share(s) for s in steps.prunings]
    assert shares == pytest.approx([1 - 0.75**3, 1 - 0.5**3, 1 - 0.25**3, 1.0])
    assert [steps.pruned_share(s) for s in (0, 19, 21, 36)] == [None] * 4
    once = Stages(2, 1, 1).resolve(steps_per_epoch=10, max_steps=40)
    assert (once.prunings, once.pruned_share(30)) == ((30,), 1.0)


def test_the_first_pruning_may_wait() -> None:
    steps = Stages(1, 0, 3, prunings=3, gradual=1.5, delay=0.5).resolve(
        steps_per_epoch=10, max_steps=40
    )
    assert steps.prunings == (15, 20, 25)
    once = Stages(1, 0, 3, delay=0.5).resolve(steps_per_epoch=10, max_steps=40)
    assert once.prunings == (15,)
    with pytest.raises(ValueError, match="delay ends at step 50, but training at 40"):
        Stages(1, 0, 3, delay=4).resolve(steps_per_epoch=10, max_steps=40)


def test_gradual_pruning_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="prunings is 0"):
        Stages(1, 0, 1, prunings=0)
    with pytest.raises(TypeError, match=r"prunings is 2\.5"):
        Stages(1, 0, 1, prunings=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a length to spread 3 prunings over"):
        Stages(1, 0, 1, prunings=3)
    with pytest.raises(ValueError, match="gradual ends at step 30, but training at 20"):
        Stages(1, 0, 1, prunings=2, gradual=2).resolve(steps_per_epoch=10, max_steps=20)
    with pytest.raises(ValueError, match="gradual leaves 1 steps, expected at least 2"):
        Stages(1, 0, 1, prunings=3, gradual=0.1).resolve(steps_per_epoch=10, max_steps=20)


def test_each_stage_may_have_its_own_learning_rate() -> None:
    steps = Stages(2, 2, 2, unit="steps").resolve(steps_per_epoch=1, max_steps=6)
    factors = [steps.lr_factor(i, rates=(1.0, 2.0, 4.0)) for i in range(6)]
    assert factors == [1.0, 0.5, 2.0, 1.0, 4.0, 2.0]
