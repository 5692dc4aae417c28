"""Pruning inside the Hugging Face ``Trainer``: dense, reweighted, prune, retrain in one run.

Source of the procedure: E.T. (SC 2021).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spatile.sparsity import Plan, Stages, StageSteps, Structure
from spatile.sparsity.saliency import SECOND_ORDER, Saliency
from spatile.torch.calibration import calibration_batches, check_indexable
from spatile.torch.checkpoint import SavedState, weights_checksum, write_state
from spatile.torch.history import lasso_summary, new_history, norm_summary, pruned_fractions
from spatile.torch.parameters import unwrap
from spatile.torch.pruner import Calibration, Method, Pruner, Scope
from spatile.torch.resume import find_state, resumed_structure
from spatile.torch.run import forget_best, steps_per_epoch, total_learning_rate, unscale
from spatile.torch.sparse_linear import densify, sparsify, sparsify_worthwhile
from spatile.torch.structure_pruning import check_structure_plan, prune_structure

__all__ = ["PruningCallback"]

_KINDS = ("beta", "masks", "pending", "scores")  # of a pruner's tensors


class PruningCallback(TrainerCallback):  # type: ignore[misc]
    """Prunes the model of a ``Trainer`` while it trains, with nothing else to write::

        plan = Plan.attention_aware(model.config, sparsity=0.5)
        pruning = PruningCallback(plan, stages=Stages(dense=1, reweighted=2, retrain=2))
        Trainer(model, args, train_dataset=data, callbacks=[pruning]).train()

    ``strength`` is the penalty's full λ, reached by the ramp of ``stages``. ``"auto"`` takes the
    one that takes at most the fraction ``shrink`` off the groups at the edge of being pruned
    (:meth:`Pruner.strength_for`), from the norms and learning rates of the run. ``method``,
    ``eps``, ``scope``, ``saliency`` and ``damping`` are :class:`Pruner`'s. ``calibration`` is for
    saliencies of second order: batches, or how many rows to draw from the training data, which
    then must be indexable; None draws as many as hold 25,000 tokens. Where ``stages`` prune
    gradually, each pruning drops more by the same saliency. ``evaluate_when_pruned`` asks the
    Trainer for an evaluation straight after the last pruning, besides its own.

    Heads, neurons and layers that the plan's structure entries name go at the first pruning, all at
    once, before the tiles of what is left; or by and by, where the plan prunes nothing else. Not
    while several processes train together. ``calibration`` and ``damping`` serve for these too. To
    resume such a run after that, cut the new model before the Trainer is made:
    ``apply_structure(model, Structure.of_config(AutoConfig.from_pretrained(checkpoint)))``.

    ``sparse``: once pruned, linear layers compute their kept groups only (:func:`sparsify`), until
    training ends. ``"auto"`` does so on the CPU alone, for float32 weights, in layers of which a
    tenth at least is skipped, or six tenths under bfloat16 autocast; on a GPU, where nobody has
    measured when it pays, layers stay dense. True: all of them, on any device; False: none.

    A model on a GPU is pruned there, as :class:`Pruner` says.

    Per optimizer step, however many batches it accumulates: the penalty's gradient after clipping
    (method ``"gradient"``), or the proximal step after the optimizer's (``"proximal"``), then
    pruned weights back to zero. A step that a GradScaler skips is skipped here too. Autocast
    changes nothing, for weights stay float32.

    Each checkpoint folder gets ``spatile_pruning.safetensors`` and ``.json`` from the process that
    saves; a resumed run finds them by itself, also in a copied folder, checks that they belong to
    the loaded weights, and goes on as if it had never stopped. When the pruning happens, the best
    metric so far is forgotten, so that ``load_best_model_at_end`` chooses among pruned models only.

    After training: ``masks``, ``history`` (JSON-serialisable; see :attr:`history`), ``pruner``.
    Raises ValueError at the start of training where plan, stages and run don't fit together, or
    where the resumed checkpoint holds another run's state.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        stages: Stages,
        strength: float | Literal["auto"] = "auto",
        shrink: float = 0.5,
        method: Method = "proximal",
        eps: float = 1e-3,
        scope: Scope = "matrix",
        saliency: Saliency = "magnitude",
        calibration: int | Calibration | None = None,
        damping: float = 0.01,
        evaluate_when_pruned: bool = False,
        sparse: bool | Literal["auto"] = "auto",
    ) -> None:
        if strength != "auto" and not (isinstance(strength, (int, float)) and strength >= 0):
            raise ValueError(f"PruningCallback: strength is {strength!r}, expected ≥ 0 or 'auto'")
        if not 0 < shrink <= 1:
            raise ValueError(f"PruningCallback: shrink is {shrink}, expected a fraction in (0, 1]")
        rows = isinstance(calibration, int)
        if rows and not (calibration >= 1 and not isinstance(calibration, bool)):  # type: ignore[operator]
            raise ValueError(
                f"PruningCallback: calibration is {calibration!r}, expected batches, a function "
                f"that gives them, or a number of rows ≥ 1"
            )
        if plan.structure and saliency in ("movement", "taylor"):
            raise ValueError(
                f"PruningCallback: saliency is {saliency!r}, expected 'second-order', "
                f"'reconstruction' or 'magnitude' where heads, neurons or layers go"
            )
        if sparse not in (True, False, "auto"):
            raise ValueError(f"PruningCallback: sparse is {sparse!r}, expected True, False, 'auto'")
        self.plan = plan
        self.stages = stages
        self.strength = strength
        self.shrink = shrink
        self.method = method
        self.eps = eps
        self.scope = scope
        self.saliency = saliency
        self.calibration = calibration
        self.damping = damping
        self.evaluate_when_pruned = evaluate_when_pruned
        self.sparse = sparse
        self._pruner: Pruner | None = None
        self._steps: StageSteps | None = None
        self._full_strength = 0.0
        self._bf16 = False
        self._calibrate: Calibration | None = None
        self._structure: Structure | None = None
        self._width = 0
        self._before: dict[str, dict[str, torch.Tensor]] = {}
        self._history: dict[str, Any] = {}

    @property
    def pruner(self) -> Pruner:
        """The pruner at work. Raises RuntimeError before training has begun."""
        if self._pruner is None:
            raise RuntimeError("PruningCallback: training has not begun, so there is no pruner yet")
        return self._pruner

    @property
    def stage_steps(self) -> StageSteps:
        """The stages in optimizer steps. Raises RuntimeError before training has begun."""
        if self._steps is None:
            raise RuntimeError("PruningCallback: training has not begun, so stages have no steps")
        return self._steps

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """Matrix name → bool mask of its groups (True = keep); empty before the pruning."""
        return {} if self._pruner is None else self._pruner.masks

    @property
    def history(self) -> dict[str, Any]:
        """What happened, JSON-serialisable.

        ``plan``, ``method``, ``scope``, ``eps``, ``strength`` (the full λ), ``stages`` (in steps);
        ``norms``: summaries at ``start``, ``reweighted_start``, ``before_prune``, ``after_prune``
        and ``end``; ``reweights``: each milestone's step, and the mean of
        norm/(norm at the last milestone); ``reweighted``: what the
        stage changed (``acted`` is False where it did nothing); ``pruned``: fractions per matrix;
        ``prunings``: each pruning's step, what
        is pruned from then on, and the relative errors of a second-order one;
        ``structure``: what is left of heads, neurons and layers, where some were to go;
        ``sparse``: the layers that compute kept groups only from then on.
        """
        return self._history

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_hyper_param_search:
            raise NotImplementedError(
                "PruningCallback: does not work inside hyperparameter_search; train each candidate "
                "with a Trainer and a PruningCallback of its own"
            )
        if self.plan.structure and args.world_size > 1:
            raise NotImplementedError(
                "PruningCallback: plan takes heads, neurons or layers away, expected one process: "
                "call prune_structure before the Trainer is made"
            )
        densify(kwargs["model"])  # a run that was broken off may have left it sparse
        check_structure_plan(kwargs["model"], self.plan)
        self._calibrate = self._calibration(args, kwargs.get("train_dataloader"), kwargs["model"])
        self._pruner = self._new_pruner(kwargs["model"], kwargs["optimizer"])
        self._steps = self.stages.resolve(
            steps_per_epoch=steps_per_epoch(args, state, kwargs.get("train_dataloader"))
            if self.stages.unit == "epochs"
            else 1.0,
            max_steps=state.max_steps,
        )
        # Calibration texts pass through the model in the precision that it trains in.
        self._bf16 = bool(args.bf16)
        self._full_strength = 0.0 if self.strength == "auto" else float(self.strength)
        self._before = {}
        self._history = new_history(self._pruner, self.plan, self._steps, self._full_strength)
        saved = None
        if state.global_step > 0:
            saved = find_state(args, state, self._pruner, self._steps)
            self._structure = resumed_structure(kwargs["model"], saved)
            if self._structure is not None:
                self._width = int(unwrap(kwargs["model"]).config.hidden_size)
        if saved is not None:
            self._restore(saved)
        else:
            self._enter_stages(state.global_step, **kwargs)
        if self.masks:
            self._sparsify(args, kwargs["model"])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._set_strength(state.global_step)
        penalized = self.method == "gradient" and self.pruner.strength > 0.0
        if penalized or self.saliency in ("movement", "taylor"):
            unscale(kwargs["optimizer"])
            self.pruner.before_step()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not getattr(kwargs["optimizer"], "step_was_skipped", False):
            self._set_strength(state.global_step)
            # Trainer moves the learning rate on only after this event.
            self.pruner.after_step()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self._enter_stages(state.global_step, **kwargs):
            self._sparsify(args, kwargs["model"])
        if state.global_step == self.stage_steps.pruned_at:
            forget_best(state)  # only pruned models may compete from here on
            control.should_evaluate = control.should_evaluate or self.evaluate_when_pruned
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not args.should_save:
            return
        pruner = self.pruner
        tensors = pruner.state_dict()
        values = {
            "step": state.global_step,
            "stage": self.stage_steps.stage(state.global_step),
            "weights_crc32": weights_checksum(pruner),
            "history": self._history,
            **{
                key: tensors[key]
                for key in ("plan", "method", "eps", "scope", "saliency", "strength")
            },
        }
        kinds = {key: tensors[key] for key in _KINDS}
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_state(folder, SavedState(values, {**kinds, **self._before}))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        densify(kwargs["model"])
        if state.global_step < self.stage_steps.pruned_at:
            warnings.warn(
                f"training ended at step {state.global_step}, before the last pruning at step "
                f"{self.stage_steps.pruned_at}: the model is not pruned as planned",
                stacklevel=2,
            )
        norms = self.pruner.norms()
        for name, mask in self.masks.items():
            alive = int((norms[name][~mask] != 0).sum())
            if alive:
                raise RuntimeError(
                    f"PruningCallback: {alive} pruned groups of {name} are not zero at the end of "
                    f"training; were weights loaded from before the pruning?"
                )
        if self.masks:
            self._history["norms"]["end"] = norm_summary(self.pruner)

    def _enter_stages(self, step: int, **kwargs: Any) -> bool:
        """Do what is due after ``step`` finished steps. True where that was a pruning."""
        pruner, steps = self.pruner, self.stage_steps
        if step == steps.dense_end and step < steps.reweighted_end:
            self._history["norms"]["reweighted_start"] = norm_summary(pruner)
            if self.saliency == "magnitude":
                first = steps.pruned_share(steps.prunings[0]) or 1.0
                masks = pruner.choose_masks(fraction=first)
                self._before = {"before_norms": pruner.norms(), "before_masks": masks}
        if step in steps.milestones:
            self._reweight(step)
        if step == steps.dense_end and step < steps.reweighted_end and self.strength == "auto":
            scheduler = kwargs.get("lr_scheduler")
            total_lr = total_learning_rate(pruner.optimizer, steps, scheduler)
            self._full_strength = pruner.strength_for(self.shrink, total_lr)
            self._history["strength"] = self._full_strength
        share = steps.pruned_share(step)
        if share is None:
            return False
        if self.plan.structure and not self.plan.entries:
            self._cut(kwargs["model"], kwargs["optimizer"], share)
        elif self.plan.structure and step == steps.prunings[0]:
            self._cut(kwargs["model"], kwargs["optimizer"], 1.0)
        self._prune(step, share)
        return True

    def _cut(self, model: torch.nn.Module, optimizer: Any, share: float) -> None:
        """Take away heads, neurons and layers, and begin with a pruner of what is left."""
        densify(model)
        given = self._calibrate
        batches = None if given is None else (given() if callable(given) else given)
        with self._training_precision(next(model.parameters()).device):
            structure = prune_structure(
                model,
                self.plan,
                batches,
                saliency=self.saliency,  # type: ignore[arg-type]
                scope="global" if self.scope == "global" else "matrix",
                fraction=share,
                damping=self.damping,
                optimizer=getattr(optimizer, "optimizer", optimizer),
            )
        self._structure, self._width = structure, int(unwrap(model).config.hidden_size)
        self._history["structure"] = structure.to_dict()
        self._pruner = self._new_pruner(model, optimizer)
        self._before = {}

    def _new_pruner(self, model: torch.nn.Module, optimizer: Any) -> Pruner:
        return Pruner(
            model,
            self.plan,
            strength=0.0,
            method=self.method,
            eps=self.eps,
            scope=self.scope,
            saliency=self.saliency,
            calibration=self._calibrate,
            damping=self.damping,
            optimizer=optimizer,
        )

    def _reweight(self, step: int) -> None:
        pruner, ratio = self.pruner, None
        if pruner.beta:
            # With β from the last milestone, Σ β‖W_g‖ over the number of groups is a mean ratio.
            pruner.strength = 1.0
            ratio = pruner.penalty() / sum(beta.numel() for beta in pruner.beta.values())
        pruner.reweight()
        self._history["reweights"].append({"step": step, "mean_norm_ratio": ratio})

    def _prune(self, step: int, share: float) -> None:
        pruner, first = self.pruner, step == self.stage_steps.prunings[0]
        if first:
            self._history["norms"]["before_prune"] = norm_summary(pruner)
        norms = pruner.norms() if self._before and first else {}
        with self._training_precision(pruner.device):
            masks = pruner.prune(fraction=share)
        if norms:
            self._history["reweighted"] = lasso_summary(
                pruner.matrices,
                norms_before=self._before["before_norms"],
                masks_before=self._before["before_masks"],
                norms_after=norms,
                masks_after=masks,
            )
            self._before = {}
        self._history["norms"]["after_prune"] = norm_summary(pruner)
        self._history["pruned"] = pruned_fractions(pruner, self._structure, width=self._width)
        self._history.setdefault("prunings", []).append(
            {
                "step": step,
                "pruned": self._history["pruned"]["all"],
                "relative_errors": pruner.relative_errors,
            }
        )

    def _training_precision(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self._bf16)

    def _calibration(
        self, args: TrainingArguments, dataloader: Any, model: torch.nn.Module
    ) -> Calibration | None:
        if self.saliency not in SECOND_ORDER and not self.plan.structure:
            return None
        rows = self.calibration
        if not (rows is None or isinstance(rows, int)):
            return rows
        check_indexable(dataloader)
        return lambda: calibration_batches(model, dataloader, rows=rows, seed=args.seed)

    def _sparsify(self, args: TrainingArguments, model: torch.nn.Module) -> None:
        layers: tuple[str, ...] = ()
        if self.sparse is True and self.pruner.matrices:
            layers = sparsify(model, self.pruner)
        elif self.sparse == "auto":
            layers = sparsify_worthwhile(model, self.pruner, bf16=bool(args.bf16))
        self._history["sparse"] = list(layers)

    def _set_strength(self, step: int) -> None:
        self.pruner.strength = self._full_strength * self.stage_steps.strength_factor(step)

    def _restore(self, saved: SavedState) -> None:
        before = float(saved.values["history"]["strength"])
        if self.strength not in ("auto", before):
            raise ValueError(
                f"PruningCallback: saved strength is {before}, expected {self.strength} as given"
            )
        self.pruner.load_state_dict(
            {**saved.values, **{k: saved.tensors.get(k, {}) for k in _KINDS}}
        )
        self._before = {
            kind: named for kind, named in saved.tensors.items() if kind.startswith("before_")
        }
        self._history = saved.values["history"]
        self._full_strength = before
