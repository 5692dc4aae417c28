"""What a run was asked to do: checked once, saved with the run, compared when it is resumed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from spatile.patterns import as_pattern
from spatile.sparsity import Plan, Schedule
from spatile.sparsity.plan import check_sparsity
from spatile.sparsity.saliency import SALIENCIES, SECOND_ORDER

__all__ = ["PRESETS", "RETRAIN_LR", "Settings"]

_CHOICES: dict[str, tuple[Any, ...]] = {
    "method": ("proximal", "gradient"),
    "scope": ("auto", "matrix", "global", "row-balanced"),
    "attention": ("auto", "spatile", "sdpa", "eager"),
    "linear": ("auto", "spatile", "torch"),
    "saliency": ("auto", *SALIENCIES),
    "overlap": (None, "error", "drop"),
    "kind": (None, "classification", "regression"),
}
_POSITIVE = ("lr", "eps", "damping")
_WHOLE = ("batch_size", "eval_batch_size", "max_length", "prunings")
_WHOLE_OR_NONE = ("calibration_rows", "checkpoint_every", "train_rows", "dev_rows")
_SWITCHES = ("sparse", "bf16", "twin")
_RATES = ("lr_dense", "lr_reweighted", "lr_retrain")
_LENGTHS = ("epochs_dense", "epochs_reweighted", "epochs_retrain")

#: Named sets of settings; what is given beside one replaces its values.
PRESETS: dict[str, dict[str, Any]] = {
    # data/qa in a few minutes on two cores. At 5e-5 its first epoch is spent before the loss falls.
    "demo": {
        "lr": 1e-4,
        "epochs_dense": 1.25,
        "epochs_retrain": 1.0,
        "calibration_rows": 256,
        "dev_rows": 500,
    },
}


#: The retrain stage's rate over ``lr``: what pruning took away is learned back faster than at a
#: rate for a dense model.
RETRAIN_LR = 2.0


@dataclass(frozen=True)
class Settings:
    """All that decides a run's result. Each field is the argument of ``finetune`` of that name.

    ``attention`` is the back-end while training; ``"auto"`` is spatile's where the model takes it,
    else PyTorch's. ``linear`` says whose matrix products the linear layers use; ``"auto"`` is
    spatile's where a short trial finds them clearly faster. ``sparse`` lets the retraining stage
    compute kept groups only, where that is faster (:class:`spatile.torch.PruningCallback`).

    ``heads``, ``neurons`` and ``layers`` are fractions of those that go, whole, at the first
    pruning; ``sparsity`` is that of what is left then (:meth:`Plan.with_structure`).

    ``keep_tokens`` and ``keep_heads`` in (0, 1] are what the layers work on of each input's tokens
    and heads on average (:meth:`Schedule.linear`); None keeps all. Tokens and heads go by and by
    over the first ``gradual`` of the retrain stage, and the packed model runs with both schedules.
    With ``sparsity`` 0 they are all that is pruned.

    ``saliency``, ``scope`` and ``damping`` are :class:`spatile.torch.Pruner`'s. Saliency
    ``"auto"`` is ``"second-order"``, but ``"magnitude"`` for single elements, which would take 16
    times as long, and for scope ``"row-balanced"``, which it can't have. Scope ``"auto"`` is
    ``"global"``, but ``"matrix"`` for groups by magnitude, whose norms differ from matrix to matrix
    for other reasons than what they are worth. Second order looks at
    ``calibration_rows`` training rows, without their labels; None is as many as hold 25,000 tokens.
    ``prunings`` (or as many as there are steps for) are spread over the first ``gradual``, a share,
    of the retrain stage (:class:`spatile.sparsity.Stages`).

    ``distill`` in [0, 1] weighs the dense stage's logits against the labels; ``distill_hidden`` and
    ``distill_attention`` weigh its hidden states and its attention, added to that. A stage's own
    learning rate replaces ``lr``; the retrain stage's is twice ``lr`` where it has none.
    ``data_seed`` draws the rows of ``train_rows`` and ``dev_rows``; None is ``seed``.

    Raises ValueError naming the setting, what it is and what was expected.
    """

    model: str
    data: str
    sparsity: float
    pattern: str = "tile"
    precompute: str | bool = False
    heads: float | None = None
    neurons: float | None = None
    layers: float | None = None
    keep_tokens: float | None = None
    keep_heads: float | None = None
    plan: dict[str, Any] | None = None
    method: str = "proximal"
    strength: float | str = "auto"
    shrink: float = 0.5
    scope: str = "auto"
    saliency: str = "auto"
    calibration_rows: int | None = None
    damping: float = 0.01
    eps: float = 1e-3
    epochs_dense: float = 3.0
    epochs_reweighted: float = 0.0
    epochs_retrain: float = 3.0
    prunings: int = 2
    gradual: float = 1 / 3
    ramp: float = 0.5
    reweight_every: float | None = None
    distill: float = 0.5
    distill_hidden: float = 1.0
    distill_attention: float = 0.0
    batch_size: int = 16
    eval_batch_size: int = 64
    lr: float = 5e-5
    lr_dense: float | None = None
    lr_reweighted: float | None = None
    lr_retrain: float | None = None
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_length: int = 128
    attention: str = "auto"
    linear: str = "auto"
    sparse: bool = True
    bf16: bool = False
    seed: int = 0
    data_seed: int | None = None
    train_rows: int | None = None
    dev_rows: int | None = None
    dev_ids: str | None = None
    overlap: str | None = None
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    kind: str | None = None
    labels: tuple[str, ...] | None = None
    positive: str | None = None
    checkpoint_every: int | None = None
    twin: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", check_sparsity(self.sparsity))
        if self.labels is not None:
            object.__setattr__(self, "labels", tuple(self.labels))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                listed = ", ".join(repr(c) for c in choices if c is not None)
                raise ValueError(
                    f"finetune: {name} is {getattr(self, name)!r}, expected one of {listed}"
                )
        for name in _POSITIVE:
            self._check(name, lambda v: v > 0, "a positive number")
        for name in _RATES:
            if getattr(self, name) is not None:
                self._check(name, lambda v: v > 0, "a positive number")
        for name in _WHOLE + _WHOLE_OR_NONE:
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not whole and (value is not None or name in _WHOLE):
                raise ValueError(f"finetune: {name} is {value!r}, expected a whole number ≥ 1")
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f"finetune: {name} is {getattr(self, name)!r}, expected True or False"
                )
        for name in ("distill_hidden", "distill_attention"):
            self._check(name, lambda v: v >= 0, "a weight ≥ 0")
        for name in ("heads", "neurons", "layers"):
            if getattr(self, name) is not None:
                self._check(name, lambda v: 0 <= v < 1, "a fraction in [0, 1)")
        for name in ("keep_tokens", "keep_heads"):
            if getattr(self, name) is not None:
                self._check(name, lambda v: 0 < v <= 1, "a fraction in (0, 1]")
        self._check_structure()
        self._check_cascade()
        for name in _LENGTHS:
            self._check(name, lambda v: v >= 0, "a number of epochs ≥ 0")
        for name in ("ramp", "distill", "warmup", "gradual"):
            self._check(name, lambda v: 0 <= v <= 1, "a fraction in [0, 1]")
        self._check("weight_decay", lambda v: v >= 0, "a number ≥ 0")
        self._check("shrink", lambda v: 0 < v <= 1, "a fraction in (0, 1]")
        if self.reweight_every is not None:
            self._check("reweight_every", lambda v: v > 0, "a positive number of epochs")
        if self.strength != "auto":
            self._check("strength", lambda v: v >= 0, "'auto' or a number ≥ 0")
        if self.saliency in SECOND_ORDER and self.scope == "row-balanced":
            raise ValueError(
                f"finetune: scope is 'row-balanced', expected 'matrix' or 'global' with saliency "
                f"{self.saliency!r}"
            )
        if self.precompute not in (True, False, "auto"):
            raise ValueError(
                f"finetune: precompute is {self.precompute!r}, expected 'auto', True or False"
            )
        if self.pattern == "structure" and (self.heads or self.neurons):
            raise ValueError(
                "finetune: pattern is 'structure', expected another one where heads or neurons are "
                "given: it decides about these itself"
            )
        if self.pattern != "attention-aware":
            if self.pattern != "structure":
                as_pattern(self.pattern)
            if self.precompute is not False:
                raise ValueError(
                    f"finetune: precompute is {self.precompute!r}, expected False with pattern "
                    f"{self.pattern!r}; it belongs to pattern 'attention-aware'"
                )

    def _check_structure(self) -> None:
        shares = self.heads or self.neurons or self.layers
        structured = self._takes_structure
        if shares and self.plan is not None:
            raise ValueError(
                "finetune: plan is given with heads, neurons or layers, expected these as entries "
                "of the plan"
            )
        if structured and self.distill_attention > 0:
            raise ValueError(
                f"finetune: distill_attention is {self.distill_attention:g}, expected 0 where "
                f"heads, neurons or layers go: the pruned model can't have the dense attention"
            )
        if structured and self.saliency in ("movement", "taylor"):
            raise ValueError(
                f"finetune: saliency is {self.saliency!r}, expected 'second-order', "
                f"'reconstruction' or 'magnitude' where heads, neurons or layers go"
            )
        if self.twin and (structured or self.ranks_by != "magnitude" or self.prunings > 1):
            raise ValueError(
                "finetune: twin is True, expected False unless tiles are pruned at once "
                "(prunings 1) and by saliency 'magnitude': else more than the penalty would differ"
            )

    @property
    def _takes_structure(self) -> bool:
        planned = self.plan is not None and bool(self.plan.get("structure"))
        shares = self.heads or self.neurons or self.layers
        return bool(shares) or planned or self.pattern == "structure"

    def _check_cascade(self) -> None:
        if not self.cascades:
            return
        if self.distill_attention > 0:
            raise ValueError(
                f"finetune: distill_attention is {self.distill_attention:g}, expected 0 with "
                f"keep_tokens or keep_heads: the pruned model can't have the dense attention"
            )
        planned = self.plan is not None and any(self.plan.get("precompute") or ())
        if self.keep_heads is not None and (self.precompute is not False or planned):
            raise ValueError(
                f"finetune: precompute is {True if planned else self.precompute!r}, expected False "
                f"with keep_heads: a head's results can't be measured where W_V and W_O are merged"
            )
        if self.twin:
            raise ValueError(
                "finetune: twin is True, expected False with keep_tokens or keep_heads: else more "
                "than the penalty would differ"
            )

    def _check(self, name: str, holds: Any, expected: str) -> None:
        value = getattr(self, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and math.isfinite(value) and holds(value)):
            raise ValueError(f"finetune: {name} is {value!r}, expected {expected}")

    @property
    def lr_factors(self) -> tuple[float, float, float]:
        """Each stage's highest learning rate over ``lr``."""
        rates = (self.lr_dense, self.lr_reweighted, self.lr_retrain)
        usual = (1.0, 1.0, RETRAIN_LR)
        first, second, third = (
            factor if rate is None else rate / self.lr
            for rate, factor in zip(rates, usual, strict=True)
        )
        return first, second, third

    @property
    def ranks_by(self) -> str:
        """The saliency, with "auto" decided."""
        if self.saliency != "auto":
            return self.saliency
        if self.sparsity == 0.0 and self.plan is None and not self._takes_structure:
            return "magnitude"  # nothing is to be ranked
        element = self.pattern == "element" or self.scope == "row-balanced"
        return "magnitude" if element else "second-order"

    @property
    def ranks_within(self) -> str:
        """The scope, with "auto" decided."""
        if self.scope != "auto":
            return self.scope
        groups = self.plan is not None or self.pattern != "element"
        return "matrix" if groups and self.ranks_by == "magnitude" else "global"

    @property
    def cascades(self) -> bool:
        """Whether tokens or heads are to go input by input."""
        return self.keep_tokens is not None or self.keep_heads is not None

    @property
    def schedules(self) -> dict[str, Schedule | None]:
        """``tokens`` and ``heads`` as :class:`spatile.inference.Encoder` takes them."""
        return {
            kind: None if keep is None else Schedule.linear(keep)
            for kind, keep in (("tokens", self.keep_tokens), ("heads", self.keep_heads))
        }

    @property
    def teaches(self) -> bool:
        """Whether the run's own dense stage is its teacher."""
        return self.distill > 0 or self.distill_hidden > 0 or self.distill_attention > 0

    def make_plan(self, config: Any) -> Plan:
        """The plan that these settings mean for a model of this configuration."""
        if self.plan is not None:
            return Plan.from_dict(self.plan)
        if self.pattern == "attention-aware":
            plan = Plan.attention_aware(
                config,
                self.sparsity,
                precompute=self.precompute,  # type: ignore[arg-type]
                tokens=self.max_length,
            )
        elif self.pattern == "structure":
            plan = Plan.structured(config, self.sparsity)
        else:
            plan = Plan.uniform(self.pattern, self.sparsity)
        return plan.with_structure(heads=self.heads, neurons=self.neurons, layers=self.layers)

    def with_changes(self, **changes: Any) -> Settings:
        """A copy with some fields replaced."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form; :meth:`from_dict` reads it back."""
        data = asdict(self)
        data["labels"] = None if self.labels is None else list(self.labels)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Settings:
        """Read what :meth:`to_dict` wrote. Raises ValueError for a field that is not known."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ValueError(f"settings: {unknown[0]!r} is not a setting of this version")
        return cls(**data)

    def differences(self, other: Settings) -> list[str]:
        """Names of the fields in which ``other`` has another value."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [name for name in mine if mine[name] != theirs[name]]
