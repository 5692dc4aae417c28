"""How a run pruned and what that did, in sentences."""

from __future__ import annotations

import statistics
from typing import Any

from spatile.report.tables import number, percent, signed
from spatile.sparsity import Structure

__all__ = ["asked_for", "pruning_lines"]

_RANKED_BY = {
    "magnitude": "by norm",
    "movement": "by movement, the gradients since the last pruning",
    "taylor": "by the loss's first-order Taylor estimate since the last pruning",
    "reconstruction": "by second order: what the layers' outputs miss least goes, and what is kept "
    "makes up for it",
    "second-order": "by second order: what the model's output misses least goes, and what is kept "
    "makes up for it",
}
_SCOPE = {
    "matrix": "ranked within each matrix",
    "global": "all matrices ranked together",
    "row-balanced": "the same share of every row of groups",
}


def asked_for(settings: dict[str, Any]) -> str:
    """The sparsity and the pattern that a run was given."""
    plan = settings.get("plan")
    if plan is None:
        return f"sparsity {settings['sparsity']:g}, pattern {settings['pattern']}"
    count = len(plan["entries"]) + len(plan.get("structure") or ())
    return f"a plan with {count} {'entry' if count == 1 else 'entries'}"


def pruning_lines(report: dict[str, Any]) -> list[str]:
    """The choice, its steps and errors, the teacher, and what the lasso did where there was one."""
    history, settings = report["pruning"], report["settings"]
    # Reports of before there was a choice were all by norm.
    lines = [f"{_RANKED_BY[history.get('saliency', 'magnitude')]}; {_SCOPE[history['scope']]}"]
    lines += _structure(history.get("structure"))
    lines += _steps(history.get("prunings", []))
    lines += _cascade(settings)
    taught = [
        f"{words} {settings[key]:g}"
        for key, words in (
            ("distill", "logits"),
            ("distill_hidden", "hidden states"),
            ("distill_attention", "attention"),
        )
        if settings.get(key)
    ]
    if taught:
        lines.append(f"learned from the dense stage, by weight: {', '.join(taught)}")
    return lines + _lasso(report)


def _structure(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    structure = Structure.from_dict(found)
    layers = structure.layers
    heads, neurons = (
        ", ".join(str(n) for n in counts)
        for counts in ([len(k.heads) for k in layers], [len(k.neurons) for k in layers])
    )
    return [
        f"{len(layers)} of {structure.n_layers} layers stay, with {heads} of {structure.n_heads} "
        f"heads and {neurons} of {structure.n_neurons} neurons"
    ]


def _cascade(settings: dict[str, Any]) -> list[str]:
    """What the layers work on, input by input; reports of before there was that have no key."""
    shares = [
        f"{percent(settings[key])} of {words}"
        for key, words in (("keep_tokens", "an input's tokens"), ("keep_heads", "the heads"))
        if settings.get(key) is not None
    ]
    if not shares:
        return []
    return [
        f"averaged over the layers, each works on {' and '.join(shares)}: on the most important "
        f"ones of each input"
    ]


def _steps(prunings: list[dict[str, Any]]) -> list[str]:
    lines = []
    if len(prunings) > 1:
        shares = ", ".join(percent(p["pruned"]) for p in prunings)
        steps = ", ".join(str(p["step"]) for p in prunings)
        lines.append(f"pruned by and by: {shares} of the weights, after steps {steps}")
    errors = prunings[-1]["relative_errors"] if prunings else {}
    if errors:
        worst = max(errors, key=lambda name: float(errors[name]))
        lines.append(
            f"squared error of the matrices' outputs at the {'last ' if lines else ''}pruning, "
            f"relative: median {percent(statistics.median(errors.values()))}, worst "
            f"{percent(errors[worst])} ({worst})"
        )
    return lines


def _lasso(report: dict[str, Any]) -> list[str]:
    history = report["pruning"]
    lasso = history.get("reweighted")
    if lasso is None:
        return []
    ratio = lasso["norm_ratio"]
    agreement = lasso["mask_agreement"]["all"]
    lines = [
        f"reweighted group lasso: method {history['method']}, λ = {history['strength']:.3g}, "
        f"ε = {history['eps']:g}",
        f"group norms, median of after/before the reweighted stage: pruned groups "
        f"{number(ratio['pruned'])}, kept groups {number(ratio['kept'])}",
        f"squared norm removed by pruning: {percent(lasso['energy_removed'])} "
        f"(λ = 0: {percent(lasso['energy_removed_without'])})",
        f"{percent(1 - agreement)} of groups are decided otherwise than by λ = 0",
    ]
    difference = report["differences"].get("pruned - lambda_zero")
    if difference is not None:
        metric = report["data"]["metrics"][0]
        lines.append(
            f"{metric} straight after pruning minus that of λ = 0: {signed(difference[metric])}"
        )
    if not lasso["acted"]:
        lines.append(
            "DEFECT: the reweighted stage changed nothing: the norms of the pruned groups fell by "
            "less than 5 %; raise the strength or the epochs of the stage"
        )
    return lines
