"""The four stages of pruning while training: dense, reweighted, prune, retrain.

Source: E.T. (SC 2021), the procedure of reweighted group lasso.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["StageSteps", "Stages"]

StageName = Literal["dense", "reweighted", "retrain"]


@dataclass(frozen=True)
class Stages:
    """How long each stage lasts, in epochs or in optimizer steps.

    dense: plain fine-tuning. reweighted: the penalty acts; its strength rises linearly from 0 to
    its full value over the first ``ramp`` (fraction) of the stage, and β is computed at the stage's
    start and again every ``reweight_every`` (same unit; default: a quarter of the stage). Pruning
    happens at the stage's end. retrain: the kept weights train on, pruned ones stay zero;
    ``retrain=None`` means for as long as training lasts.

    Pruning may be gradual: ``prunings`` of them, evenly spread over the first ``gradual`` (same
    unit) of the retrain stage, the first after ``delay``; after i of n the share 1 − (1 − i/n)³ of
    what is to go is gone (the cubic schedule of Zhu and Gupta 2017).

    Raises ValueError for a negative or non-finite length, a ramp outside [0, 1], and several
    prunings without a length to spread them over.

    >>> steps = Stages(dense=1, reweighted=2, retrain=1).resolve(steps_per_epoch=9, max_steps=36)
    >>> steps.dense_end, steps.reweighted_end, steps.milestones
    (9, 27, (9, 14, 19, 24))
    """

    dense: float
    reweighted: float
    retrain: float | None = None
    unit: Literal["epochs", "steps"] = "epochs"
    reweight_every: float | None = None
    ramp: float = 0.5
    prunings: int = 1
    gradual: float = 0.0
    delay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("dense", "reweighted", "retrain", "reweight_every", "gradual", "delay"):
            value = getattr(self, name)
            if value is None and name in ("retrain", "reweight_every"):
                continue
            low_enough = value > 0 if name == "reweight_every" else value >= 0
            if not math.isfinite(value) or not low_enough:
                raise ValueError(f"stages: {name} is {value}, expected a finite length of {name}")
            if self.unit == "steps" and value != int(value):
                raise ValueError(f"stages: {name} is {value}, expected a whole number of steps")
        if self.unit not in ("epochs", "steps"):
            raise ValueError(f"stages: unit is {self.unit!r}, expected 'epochs' or 'steps'")
        if isinstance(self.prunings, bool) or not isinstance(self.prunings, int):
            raise TypeError(f"stages: prunings is {self.prunings!r}, expected a whole number")
        if self.prunings < 1:
            raise ValueError(f"stages: prunings is {self.prunings}, expected at least 1")
        if self.prunings > 1 and not self.gradual > 0:
            raise ValueError(
                f"stages: gradual is {self.gradual:g}, expected a length to spread "
                f"{self.prunings} prunings over"
            )
        if not 0.0 <= self.ramp <= 1.0:
            raise ValueError(f"stages: ramp is {self.ramp}, expected a fraction in [0, 1]")

    def resolve(self, *, steps_per_epoch: float, max_steps: int) -> StageSteps:
        """The stages in optimizer steps of a run of ``max_steps`` steps.

        Raises ValueError when the run is too short to reach the pruning, or when all three lengths
        are given and their sum is another length than the run's.
        """
        scale = steps_per_epoch if self.unit == "epochs" else 1.0
        dense_end = round(self.dense * scale)
        reweighted_end = round((self.dense + self.reweighted) * scale)
        if reweighted_end > max_steps:
            raise ValueError(
                f"stages: pruning is at step {reweighted_end}, but training ends at {max_steps}; "
                f"expected dense + reweighted to fit into the run"
            )
        if self.retrain is not None:
            total = round((self.dense + self.reweighted + self.retrain) * scale)
            if abs(total - max_steps) > 1:
                raise ValueError(
                    f"stages: the lengths sum to {total} steps, expected the run's {max_steps} "
                    f"(retrain=None takes what is left)"
                )
        length = reweighted_end - dense_end
        prunings = self._prunings(reweighted_end, scale, max_steps)
        if self.reweight_every is None:
            every = max(1, -(-length // 4))
        else:
            every = max(1, round(self.reweight_every * scale))
        return StageSteps(
            dense_end,
            reweighted_end,
            max_steps,
            tuple(range(dense_end, reweighted_end, every)),
            round(self.ramp * length),
            prunings,
        )

    def _prunings(self, start: int, scale: float, max_steps: int) -> tuple[int, ...]:
        first = start + round(self.delay * scale)
        if first > max_steps:
            raise ValueError(
                f"stages: delay ends at step {first}, but training at {max_steps}; expected it to "
                f"fit into the retrain stage"
            )
        if self.prunings == 1:
            return (first,)
        last = start + round(self.gradual * scale)
        if last > max_steps:
            raise ValueError(
                f"stages: gradual ends at step {last}, but training at {max_steps}; expected it to "
                f"fit into the retrain stage"
            )
        if last - first < self.prunings - 1:
            raise ValueError(
                f"stages: gradual leaves {last - first} steps, expected at least "
                f"{self.prunings - 1} for {self.prunings} prunings"
            )
        return tuple(
            first + round(i * (last - first) / (self.prunings - 1)) for i in range(self.prunings)
        )


@dataclass(frozen=True)
class StageSteps:
    """:class:`Stages` in optimizer steps. Step numbers count finished steps, as Trainer's do."""

    dense_end: int
    reweighted_end: int
    total: int
    milestones: tuple[int, ...]
    ramp_steps: int
    prunings: tuple[int, ...]

    @property
    def pruned_at(self) -> int:
        """The step after which all is gone that is to go."""
        return self.prunings[-1]

    def pruned_share(self, step: int) -> float | None:
        """The share of what is to go that is pruned after ``step`` finished steps; None: no change.

        >>> steps = Stages(1, 0, 3, unit="steps", prunings=2, gradual=1).resolve(
        ...     steps_per_epoch=1, max_steps=4)
        >>> [steps.pruned_share(i) for i in range(4)]
        [None, 0.875, 1.0, None]
        """
        if step not in self.prunings:
            return None
        done = (self.prunings.index(step) + 1) / len(self.prunings)
        return 1.0 if done == 1.0 else float(1.0 - (1.0 - done) ** 3)

    def stage(self, step: int) -> StageName:
        """The stage of the optimizer step that follows ``step`` finished ones."""
        if step < self.dense_end:
            return "dense"
        return "reweighted" if step < self.reweighted_end else "retrain"

    def strength_factor(self, step: int) -> float:
        """What the penalty's strength is multiplied by in the step after ``step`` finished ones."""
        if self.stage(step) != "reweighted":
            return 0.0
        if self.ramp_steps == 0:
            return 1.0
        return min(1.0, (step - self.dense_end + 1) / self.ramp_steps)

    def lr_factor(
        self, step: int, *, warmup: float = 0.0, rates: Sequence[float] = (1.0, 1.0, 1.0)
    ) -> float:
        """A learning-rate factor that starts anew in each stage, for ``LambdaLR``.

        ``rates`` are the highest factors of the dense, the reweighted and the retrain stage.

        It rises linearly over the first ``warmup`` (fraction) of a stage and falls linearly to 0
        at its end, so that every stage is a fine-tuning of its own, as in the paper.

        >>> steps = Stages(1, 1, 1, unit="steps").resolve(steps_per_epoch=1, max_steps=3)
        >>> [steps.lr_factor(i) for i in range(3)]
        [1.0, 1.0, 1.0]
        """
        ends = (self.dense_end, self.reweighted_end, self.total)
        start = max((e for e in (0, *ends) if e <= step), default=0)
        end = min((e for e in ends if e > step), default=self.total)
        length = max(1, end - start)
        rising = round(warmup * length)
        done = step - start
        rate = rates[("dense", "reweighted", "retrain").index(self.stage(min(step, end - 1)))]
        if done < rising:
            return rate * (done + 1) / (rising + 1)
        return rate * max(0.0, (length - done) / max(1, length - rising))
