"""What ``TokenPruning`` and ``HeadPruning`` share: attaching, progress, the Trainer's events."""

from __future__ import annotations

import math
from types import TracebackType
from typing import Any, ClassVar, Literal, TypeVar

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spatile.inference.running import Kept
from spatile.sparsity import Schedule
from spatile.torch.cascade import Cascade, cascade_of, check_no_checkpointing
from spatile.torch.cascade_pass import Fractions
from spatile.torch.parameters import unwrap
from spatile.torch.run import forget_best, steps_per_epoch

__all__ = ["CascadePruning"]

Self = TypeVar("Self", bound="CascadePruning")


class CascadePruning(TrainerCallback):  # type: ignore[misc]
    """One of the two kinds of pruning; see :class:`TokenPruning` and :class:`HeadPruning`."""

    kind: ClassVar[Literal["tokens", "heads"]]

    def __init__(
        self,
        schedule: Schedule,
        *,
        gradual: float = 0.0,
        delay: float = 0.0,
        unit: Literal["epochs", "steps"] = "epochs",
    ) -> None:
        if not isinstance(schedule, Schedule):
            raise TypeError(
                f"{self._name}: schedule is a {type(schedule).__name__}, expected a Schedule"
            )
        if unit not in ("epochs", "steps"):
            raise ValueError(f"{self._name}: unit is {unit!r}, expected 'epochs' or 'steps'")
        for name, value in (("gradual", gradual), ("delay", delay)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{self._name}: {name} is {value}, expected a finite length ≥ 0")
        self.schedule = schedule
        self.gradual, self.delay, self.unit = gradual, delay, unit
        self._progress = 1.0 if gradual == delay == 0 else 0.0
        self._model: nn.Module | None = None
        self._span = (0, 0)

    @property
    def _name(self) -> str:
        return type(self).__name__

    # ---- in a plain loop ------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        """How far the pruning has come, from 0 (all is kept) to 1 (what the schedule says).

        A layer that is to keep the fraction k keeps 1 − progress·(1 − k). It may be set at any
        time between two runs of the model; in a Trainer it follows from the step.
        """
        return self._progress

    @progress.setter
    def progress(self, value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{self._name}: progress is {value!r}, expected a number in [0, 1]")
        if not 0.0 <= value <= 1.0:  # NaN too
            raise ValueError(f"{self._name}: progress is {value:g}, expected a number in [0, 1]")
        self._progress = float(value)
        self._tell()

    def attach(self: Self, model: nn.Module) -> Self:
        """Prune in ``model``, training and evaluation alike, until :meth:`detach`; returns itself.

        Also a context manager: ``with TokenPruning(schedule).attach(model): ...`` detaches at its
        end. The model may be inside DistributedDataParallel or torch.compile, and stays the object
        that it is. Where nothing is to go from a batch the model computes as without it; else its
        attention is spatile's, whatever back-end it has: on the CPU and on CUDA devices the fused
        kernel for float32, float16 and bfloat16, otherwise plain PyTorch operations. What goes is
        decided on the host, for which a GPU is waited at every layer.

        Raises NotImplementedError for a model other than BERT, DistilBERT and RoBERTa, a decoder,
        DataParallel, gradient checkpointing, and for tokens a head that needs all of them;
        ValueError where this is attached already, the model has its like, or the schedule does not
        fit its layers.
        """
        if self._model is not None:
            raise ValueError(f"{self._name}: it is attached to a model, expected detach() before")
        if isinstance(model, nn.DataParallel):
            raise NotImplementedError(
                f"{self._name}: model is inside DataParallel, expected DistributedDataParallel"
            )
        inner = unwrap(model)
        self._check_model(inner)
        cascade = cascade_of(inner)
        if cascade is not None and getattr(cascade, self.kind) is not None:
            raise ValueError(
                f"{self._name}: model has a {self._name} already, expected that detached before"
            )
        cascade = Cascade(inner) if cascade is None else cascade
        try:
            self._check_schedule(cascade, inner.config)
        except BaseException:
            if cascade.tokens is None and cascade.heads is None:
                cascade.remove()
            raise
        self._model = inner
        self._tell()
        return self

    def detach(self) -> None:
        """Have the model keep all again. Nothing happens where this is not attached."""
        cascade = self._cascade()
        self._model = None
        if cascade is not None:
            setattr(cascade, self.kind, None)
            if cascade.tokens is None and cascade.heads is None:
                cascade.remove()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    @property
    def kept(self) -> Kept:
        """The tokens and heads that each layer worked on in the model's last run.

        ``counts`` (layers, n), ``positions(layer, i)`` and ``heads`` (layers, n, heads), as
        ``Encoder.run(...).kept`` has them. Raises RuntimeError where none has run since it was
        attached.
        """
        cascade = self._cascade()
        kept = None if cascade is None else cascade.kept()
        if kept is None:
            raise RuntimeError(
                f"{self._name}: no batch has run, so nothing is known of what is kept"
            )
        return kept

    def _cascade(self) -> Cascade | None:
        return None if self._model is None else cascade_of(self._model)

    def _tell(self) -> None:
        cascade = self._cascade() if self._model is not None else None
        if cascade is not None:
            setattr(cascade, self.kind, self._fractions())

    def _fractions(self) -> Fractions:
        return Fractions(self.schedule, self._progress)

    def _check_model(self, model: nn.Module) -> None:
        config = getattr(model, "config", None)
        if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
            raise NotImplementedError(f"{self._name}: model is a decoder, expected an encoder")
        place = getattr(config, "position_embedding_type", None) or "absolute"
        if place != "absolute":
            raise NotImplementedError(
                f"{self._name}: position_embedding_type is {place!r}, expected 'absolute'"
            )
        check_no_checkpointing(self._name, model)

    def _check_schedule(self, cascade: Cascade, config: Any) -> None:
        length = int(config.max_position_embeddings)
        self.schedule.keep(len(cascade.structure().layers), unit=self.kind, length=length)

    # ---- in a Trainer ---------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.n_gpu > 1:
            raise NotImplementedError(
                f"{self._name}: the Trainer uses DataParallel over {args.n_gpu} devices, expected "
                f"one process for each"
            )
        scale = 1.0
        if self.unit == "epochs" and (self.delay or self.gradual):
            scale = steps_per_epoch(args, state, kwargs.get("train_dataloader"))
        self._span = round(self.delay * scale), round((self.delay + self.gradual) * scale)
        if self._span[1] > state.max_steps:
            raise ValueError(
                f"{self._name}: delay and gradual end at step {self._span[1]}, but training at "
                f"{state.max_steps}; expected them to fit into the run"
            )
        if self._model is not unwrap(kwargs["model"]):
            self.detach()
            self.attach(kwargs["model"])
        self._move(state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._move(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._move(state)
        if state.global_step == self._span[1]:
            forget_best(state)

    def _move(self, state: TrainerState) -> None:
        begin, end = self._span
        if state.global_step >= end:
            self.progress = 1.0
        else:
            self.progress = max(0, state.global_step - begin) / max(1, end - begin)
