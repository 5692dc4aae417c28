"""Reweighted group lasso and percentile pruning for a plain PyTorch training loop.

Source of the method: E.T. (SC 2021). The proximal step is the standard one for a group lasso.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from spatile import ops
from spatile.sparsity import Plan, PlannedMatrix
from spatile.sparsity.saliency import Saliency
from spatile.torch.choice import Calibration, GroupChoice, Scope
from spatile.torch.distributed import broadcast_from_first
from spatile.torch.parameters import planned_matrices, weight_view

__all__ = ["Calibration", "Method", "Pruner", "Scope"]

Method = Literal["proximal", "gradient"]

# In these dtypes w·(1 − c) rounds back to w for a small c, so that a small step would never act.
# Shrinkage is summed per group until it is this fraction of the norm: two bits above the rounding.
_FLUSH_AT = {torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}


class Pruner:
    """Prunes the matrices of ``model`` that ``plan`` names, in a training loop of one's own.

    What a plan takes away whole is for :func:`prune_structure`, before a Pruner is made.

    ``strength`` is λ (settable, ≥ 0; 0 switches the penalty off); ``eps`` is ε in
    β = 1/(‖W_g‖₂ + ε). ``optimizer`` is asked for the learning rate of the proximal step.
    Two methods:

    - ``"proximal"``: after the optimizer's step, W_g ← W_g·max(0, 1 − ηλβ/‖W_g‖) with η the
      learning rate. Decoupled from the optimizer, so it acts at full strength under AdamW too.
    - ``"gradient"``: before the optimizer's step, λβ·W_g/‖W_g‖ is added to the gradient, as
      published. Adam divides it by its own running size, and little of it arrives.

    A loop::

        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        pruner.before_step()    # after clipping; for "gradient", and saliency by gradients
        optimizer.step()
        pruner.after_step()     # the proximal step, and pruned weights back to zero
        optimizer.zero_grad()

    with ``reweight()`` at milestones and ``prune()`` once the penalty has done its work. From then
    on pruned weights are exactly zero after every ``after_step()``, whatever momentum and weight
    decay did to them. ``prune()`` sets ``strength`` to 0; it may be called again to prune more.

    ``saliency`` says which groups :meth:`prune` drops: those of lowest norm (``"magnitude"``); by
    gradients that :meth:`before_step` sees, those that training moves towards zero
    (``"movement"``) or whose absence the loss would feel least (``"taylor"``), both summed over the
    steps since the last pruning; by ``"second-order"``, those whose absence changes the model's
    output least on ``calibration``, or by ``"reconstruction"`` that of their own layer; after both
    the kept weights make up for them (:func:`spatile.second_order_removals`, with
    :func:`output_sensitivities` as row weights or without; ``damping`` is its). ``calibration``
    holds batches as the model takes them, without labels, or is a function that gives them; a few
    hundred texts will do.

    Mixed precision: under autocast parameters and gradients are float32 and nothing changes. With
    a GradScaler, unscale first (``scaler.unscale_(optimizer)``, then clipping, then
    ``before_step()``), and call ``after_step()`` only where the scaler did take the step, that is
    where ``scaler.get_scale()`` did not fall in ``scaler.update()``. bfloat16 and float16
    parameters can't take the tiny proximal steps, so their shrinkage is summed per group in float32
    and applied where it has become large enough to survive rounding.

    On a GPU all of this happens there, and β, masks and sums follow a model that moves; what
    second order asks of each matrix is brought to the host, for its ops are the CPU's alone, and
    the weights copied back (:mod:`spatile.torch.second_order`). Matrices that are ranked together
    are on one device.

    Under DistributedDataParallel every process calls every method; β and masks are those of
    process 0. Raises ValueError for a bad argument and for a plan that matches no matrix.

    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
    ...                              intermediate_size=64, vocab_size=9))
    >>> pruner = Pruner(model, Plan.uniform("tile", 0.5), strength=0.0)
    >>> masks = pruner.prune()
    >>> sum(int(m.sum()) for m in masks.values()), sum(m.numel() for m in masks.values())
    (16, 32)
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        *,
        strength: float,
        method: Method = "proximal",
        eps: float = 1e-3,
        scope: Scope = "matrix",
        saliency: Saliency = "magnitude",
        calibration: Calibration | None = None,
        damping: float = 0.01,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        if method not in ("proximal", "gradient"):
            raise ValueError(f"Pruner: method is {method!r}, expected 'proximal' or 'gradient'")
        if not (math.isfinite(eps) and eps > 0):
            raise ValueError(f"Pruner: eps is {eps}, expected a positive number")
        self.plan = plan
        self.method: Method = method
        self.eps = float(eps)
        self.optimizer = optimizer
        self.strength = strength
        self._matrices, self._parameters = planned_matrices(model, plan)
        self._choice = GroupChoice(
            model,
            self._matrices,
            self._parameters,
            saliency=saliency,
            scope=scope,
            calibration=calibration,
            damping=damping,
        )
        self._beta: dict[str, torch.Tensor] = {}
        self._masks: dict[str, torch.Tensor] = {}
        self._pending: dict[str, torch.Tensor] = {}
        self._errors: dict[str, float] = {}

    @property
    def scope(self) -> Scope:
        """What is ranked together, as given at construction."""
        return self._choice.scope

    @property
    def saliency(self) -> Saliency:
        """What groups are ranked by."""
        return self._choice.saliency

    @property
    def strength(self) -> float:
        """λ, the penalty's strength."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"Pruner: strength is {value}, expected a finite number ≥ 0")
        self._strength = float(value)

    @property
    def matrices(self) -> tuple[PlannedMatrix, ...]:
        """What is pruned, in the model's order."""
        return tuple(self._matrices)

    @property
    def device(self) -> torch.device:
        """Where the first planned matrix is; the CPU where nothing is planned."""
        found = (p.device for p in self._parameters.values())
        return next(found, torch.device("cpu"))

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """Matrix name → bool mask of its groups (True = keep); empty before :meth:`prune`."""
        self._follow()
        return dict(self._masks)

    @property
    def relative_errors(self) -> dict[str, float]:
        """Matrix name → ‖X·ΔWᵀ‖²/‖X·Wᵀ‖² of the last second-order pruning; else empty."""
        return dict(self._errors)

    @property
    def beta(self) -> dict[str, torch.Tensor]:
        """Matrix name → β of its groups, float32; empty before :meth:`reweight`."""
        self._follow()
        return dict(self._beta)

    def weight(self, matrix: PlannedMatrix) -> torch.Tensor:
        """The (out, in) view of a planned matrix in its parameter's memory, detached."""
        return weight_view(self._parameters[matrix.parameter], matrix)

    def parameter(self, matrix: PlannedMatrix) -> nn.Parameter:
        """The parameter that holds a planned matrix, whole or as a part."""
        return self._parameters[matrix.parameter]

    def norms(self) -> dict[str, torch.Tensor]:
        """Matrix name → L2 norms of its groups, float32."""
        return {m.name: ops.group_norms(self.weight(m), pattern=m.pattern) for m in self._matrices}

    def penalty(self) -> float:
        """λ·Σ β‖W_g‖₂ over all planned matrices; β = 1 before :meth:`reweight`."""
        self._follow()
        total = 0.0
        for m in self._matrices:
            beta = self._beta.get(m.name)
            total += ops.group_lasso(self.weight(m), pattern=m.pattern, beta=beta)
        return self._strength * total

    def reweight(self) -> None:
        """Compute β from the current norms. It stays fixed until the next call."""
        for m in self._matrices:
            self._beta[m.name] = ops.group_beta(self.weight(m), pattern=m.pattern, eps=self.eps)
        broadcast_from_first(list(self._beta.values()))

    def before_step(self) -> None:
        """Gradient method: add the penalty's gradient. Call it after clipping and unscaling.

        β is computed first where :meth:`reweight` was never called. Frozen parameters are left out.
        Saliency by gradients looks at them here, before the penalty is added.
        """
        self._follow()
        self._choice.observe()
        if self.method != "gradient" or self._strength == 0.0:
            return
        self._ensure_beta()
        for m in self._matrices:
            parameter = self._parameters[m.parameter]
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            ops.add_group_lasso_grad_(
                weight_view(parameter.grad, m),
                self.weight(m),
                pattern=m.pattern,
                beta=self._beta[m.name],
                strength=self._strength,
            )

    def after_step(self, lr: float | None = None) -> None:
        """Proximal method: shrink every group. Both methods: pruned weights back to zero.

        ``lr`` is η; by default the optimizer's own for each parameter, as it was in the step that
        has just been taken (so call this before the scheduler's step). Raises ValueError where
        neither ``lr`` nor an optimizer was given.
        """
        if self.method == "proximal" and self._strength > 0.0:
            self._follow()
            self._ensure_beta()
            rate = self._learning_rates(lr)
            for m in self._matrices:
                amount = rate(self._parameters[m.parameter]) * self._strength
                if amount > 0.0:
                    self._shrink(m, amount)
        self.apply_masks()

    def apply_masks(self) -> None:
        """Set pruned weights to zero; nothing before :meth:`prune`."""
        self._follow()
        for m in self._matrices:
            mask = self._masks.get(m.name)
            if mask is not None:
                ops.apply_mask_(self.weight(m), mask, pattern=m.pattern)

    def prune(
        self,
        sparsity: float | None = None,
        *,
        fraction: float = 1.0,
        scope: Scope | None = None,
    ) -> dict[str, torch.Tensor]:
        """Drop the groups that ``saliency`` ranks lowest, now and for good; returns the masks.

        ``sparsity`` replaces the plan's for every matrix; ``fraction`` in (0, 1] of either is
        pruned, for pruning by and by; ``scope`` replaces the one given at construction.
        ``"global"`` ranks together all matrices that share a pattern and a sparsity.
        ``"row-balanced"`` means every row of groups loses the same share; a pattern with one group
        per row has no such rows, and is ranked per matrix. Raises ValueError for weights that are
        NaN or infinite, and for saliency by gradients without any.
        """
        masks = self.choose_masks(sparsity, fraction=fraction, scope=scope)
        different = broadcast_from_first(list(masks.values()))
        if different:
            named = ", ".join(list(masks)[i] for i in different)
            warnings.warn(
                f"this process would have pruned {named} differently from process 0, whose masks "
                f"it now uses: are the processes' weights the same?",
                stacklevel=2,
            )
        self._errors = self._choice.pruned(masks)
        self._masks = masks
        self._pending.clear()
        self.strength = 0.0
        self.apply_masks()
        return self.masks

    def choose_masks(
        self,
        sparsity: float | None = None,
        *,
        fraction: float = 1.0,
        scope: Scope | None = None,
    ) -> dict[str, torch.Tensor]:
        """The masks that :meth:`prune` would set now; changes nothing."""
        self._follow()
        return self._choice.masks(self._masks, sparsity=sparsity, fraction=fraction, scope=scope)

    def strength_for(self, shrink: float, total_lr: float) -> float:
        """The λ that takes at most the fraction ``shrink`` off a group at the pruning's edge.

        That is, off the group whose norm n is at its matrix's sparsity quantile, over steps whose
        learning rates (times any ramp) sum to ``total_lr``, where the loss does not resist. With β
        refreshed all the time, n falls as dn = −λη/n, so λ = (1 − (1 − shrink)²)/2 · n/(β·total_lr)
        for the β of now. The smallest λ over matrices is taken: matrices differ in norm, and one
        whose norms are half another's would else be emptied long before it. A place to start from:
        the right λ is the largest that accuracy stands.

        Raises ValueError for a ``shrink`` outside (0, 1] and a ``total_lr`` that is not positive.
        """
        if not 0.0 < shrink <= 1.0:
            raise ValueError(f"Pruner: shrink is {shrink}, expected a fraction in (0, 1]")
        if not total_lr > 0.0:
            raise ValueError(f"Pruner: total_lr is {total_lr}, expected a positive number")
        self._follow()
        self._ensure_beta()
        edges: list[float] = []
        for m in self._matrices:
            norm = ops.group_norms(self.weight(m), pattern=m.pattern)
            # On the host: a GPU's kthvalue is refused where PyTorch is to be deterministic.
            fraction = (norm / self._beta[m.name]).flatten().cpu()
            rank = min(fraction.numel(), math.floor(m.sparsity * fraction.numel()) + 1)
            edges.append(float(fraction.kthvalue(rank).values))
        return (1 - (1 - shrink) ** 2) / 2 * min(edges, default=0.0) / total_lr

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs besides the weights; tensors are not copied."""
        gradients = self._choice.gradients
        return {
            "plan": self.plan.to_dict(),
            "strength": self._strength,
            "method": self.method,
            "eps": self.eps,
            "scope": self.scope,
            "saliency": self.saliency,
            "beta": self.beta,
            "masks": self.masks,
            "pending": dict(self._pending),
            "scores": {} if gradients is None else dict(gradients.scores),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a :meth:`state_dict` and set pruned weights to zero.

        Raises ValueError where it belongs to another plan, method or model.
        """
        for key, mine in (
            ("plan", self.plan.to_dict()),
            ("method", self.method),
            ("eps", self.eps),
            ("scope", self.scope),
            ("saliency", self.saliency),
        ):
            if state.get(key, "magnitude" if key == "saliency" else None) != mine:
                raise ValueError(f"Pruner: saved {key} is {state.get(key)}, expected {mine}")
        self.strength = state["strength"]
        self._beta = self._checked_tensors("beta", state["beta"])
        self._masks = self._checked_tensors("masks", state["masks"])
        self._pending = self._checked_tensors("pending", state["pending"])
        if self._choice.gradients is not None:
            self._choice.gradients.scores = self._checked_tensors("scores", state.get("scores", {}))
        self.apply_masks()

    def _checked_tensors(
        self, kind: str, saved: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        expected = {m.name: m for m in self._matrices}
        for name, tensor in saved.items():
            if name not in expected:
                raise ValueError(f"Pruner: saved {kind} of {name}, which the plan does not prune")
            if tuple(tensor.shape) != expected[name].mask_shape:
                raise ValueError(
                    f"Pruner: saved {kind} of {name} is {tuple(tensor.shape)}, "
                    f"expected {expected[name].mask_shape}"
                )
        return {
            name: saved[name].to(self._parameters[m.parameter].device, copy=True)
            for name, m in expected.items()
            if name in saved
        }

    def _follow(self) -> None:
        """Bring what is kept of each matrix to where its parameter is now."""
        gradients = self._choice.gradients
        scores = {} if gradients is None else gradients.scores
        for m in self._matrices:
            device = self._parameters[m.parameter].device
            for named in (self._beta, self._masks, self._pending, scores):
                tensor = named.get(m.name)
                if tensor is not None and tensor.device != device:
                    named[m.name] = tensor.to(device)

    def _ensure_beta(self) -> None:
        if not self._beta:
            self.reweight()

    def _learning_rates(self, lr: float | None) -> Callable[[nn.Parameter], float]:
        if lr is not None:
            return lambda parameter: float(lr)
        if self.optimizer is None:
            raise ValueError("Pruner: after_step needs lr, or an optimizer given to the Pruner")
        # A frozen parameter is in no group; it takes no step, so it takes no proximal step either.
        rates = {
            id(p): float(group["lr"])
            for group in self.optimizer.param_groups
            for p in group["params"]
        }
        return lambda parameter: rates.get(id(parameter), 0.0)

    def _shrink(self, m: PlannedMatrix, amount: float) -> None:
        weight, beta = self.weight(m), self._beta[m.name]
        limit = _FLUSH_AT.get(weight.dtype)
        if limit is None:
            ops.group_shrink_(weight, pattern=m.pattern, beta=beta, strength=amount)
            return
        pending = self._pending.setdefault(m.name, torch.zeros_like(beta))
        pending.add_(beta, alpha=amount)
        due = pending >= limit * ops.group_norms(weight, pattern=m.pattern)
        if bool(due.any()):
            step = torch.where(due, pending, torch.zeros_like(pending))
            ops.group_shrink_(weight, pattern=m.pattern, beta=step, strength=1.0)
            pending.sub_(step)
