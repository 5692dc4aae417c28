"""Pruning of a finished checkpoint without training; by norms also without PyTorch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from spatile import ops
from spatile.finetune.data.task import Examples, Task
from spatile.finetune.metrics import Score
from spatile.finetune.run_folder import RunFolder, write_folder
from spatile.finetune.settings import Settings
from spatile.finetune.tasks import check_labels, scores_of
from spatile.finetune.weights import resolve_model
from spatile.inference import Encoder
from spatile.inference.architecture import read_architecture, with_structure
from spatile.inference.files import read_json, read_pooling
from spatile.inference.head import read_head
from spatile.inference.weights import EncoderWeights, read_checkpoint
from spatile.sparsity import Plan, PlannedMatrix, Structure, match
from spatile.sparsity.saliency import SECOND_ORDER

__all__ = ["check_scorable", "prune_checkpoint", "scores_of_encoder"]


def prune_checkpoint(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    sparsity: float,
    pattern: str = "tile",
    precompute: str | bool = False,
    heads: float | None = None,
    neurons: float | None = None,
    layers: float | None = None,
    plan: Plan | None = None,
    scope: str | None = None,
    saliency: str | None = None,
    calibration: Examples | None = None,
    calibration_rows: int = 512,
    damping: float = 0.01,
    max_length: int = 128,
) -> tuple[Encoder, Encoder]:
    """Prune what a plan names, and write the packed model to ``out``; no training.

    By norm, each matrix by itself; or with ``calibration`` by second order, all matrices together:
    so that on these texts, without labels, the model's output changes least, or with ``saliency``
    ``"reconstruction"`` each matrix's own (:class:`spatile.torch.Pruner`; needs PyTorch). ``scope``
    replaces what is ranked together. Texts are cut to ``max_length`` tokens, or to as many as the
    model takes. Other arguments as in :func:`spatile.finetune.finetune`, of which ``plan`` replaces
    ``sparsity`` too. Returns the encoders before and after. Raises FileExistsError
    where ``out`` holds anything, ValueError for any other ``saliency``, and where there is no
    ``calibration`` but a ``saliency``, or heads, neurons or layers are to go.

    >>> from spatile.finetune.one_shot import prune_checkpoint                  # doctest: +SKIP
    >>> dense, packed = prune_checkpoint("classifier", "small", sparsity=0.3)   # doctest: +SKIP
    """
    if saliency is None:
        saliency = "second-order"
    elif saliency not in SECOND_ORDER:
        raise ValueError(
            f"prune: saliency is {saliency!r}, expected {' or '.join(map(repr, SECOND_ORDER))}"
        )
    elif calibration is None:
        raise ValueError(f"prune: calibration is None, expected texts for saliency {saliency!r}")
    RunFolder.check_new(out, op="prune")
    if scope is None:
        scope = "matrix" if calibration is None else "global"
    source = Path(resolve_model(os.fspath(model), op="prune"))
    try:
        settings = Settings(
            str(source),
            "",
            sparsity,
            pattern=pattern,
            precompute=precompute,
            heads=heads,
            neurons=neurons,
            layers=layers,
            scope=scope,
            saliency="magnitude" if calibration is None else saliency,
            calibration_rows=calibration_rows,
            damping=damping,
            max_length=max_length,
            plan=None if plan is None else plan.to_dict(),
        )
    except ValueError as error:
        raise ValueError(str(error).replace("finetune: ", "prune: ", 1)) from None
    if not source.is_dir():
        raise FileNotFoundError(f"prune: model is {source}, expected the folder of a checkpoint")
    config = read_json(source / "config.json")
    chosen = settings.make_plan(config)
    architecture = read_architecture(config, source=str(source))
    weights = read_checkpoint(source, architecture)
    if calibration is None:
        if chosen.structure:
            raise ValueError(
                f"prune: calibration is None, expected texts to choose {chosen.structure[0].kind} "
                f"by"
            )
        _prune(weights, chosen, scope, architecture.structure)
    else:
        from spatile.finetune.on_texts import prune_on_texts

        structure = prune_on_texts(
            source,
            weights,
            chosen,
            calibration,
            scope=scope,
            saliency=saliency,
            rows=calibration_rows,
            damping=damping,
            max_length=min(max_length, architecture.max_tokens),
            classifies=read_head(weights, architecture, config) is not None,
        )
        if structure != architecture.structure:
            config = with_structure(config, structure)
    pooling = read_pooling(source)
    pruned = Encoder(weights, config, plan=chosen, folder=source, pooling=pooling)
    write_folder(Path(out), lambda folder: pruned.save(folder))
    return Encoder.load(source), Encoder.load(out)


def _prune(weights: EncoderWeights, plan: Plan, scope: str, structure: Structure) -> None:
    """Set the patterns and masks of ``weights``, and pruned weights to zero."""
    shapes = {name: t.shape for name, t in weights.tensors.items()}
    matrices = match(plan, shapes, structure=structure)
    pools: dict[Any, list[PlannedMatrix]] = {}
    for m in matrices:
        pools.setdefault((m.pattern, m.sparsity) if scope == "global" else m.name, []).append(m)
    for pool in pools.values():
        per_row = scope == "row-balanced" and pool[0].mask_shape[1] > 1
        masks = ops.prune_mask(
            [weights.tensors[m.parameter] for m in pool],
            pattern=[m.pattern for m in pool],
            sparsity=pool[0].sparsity,
            scope="row-balanced" if per_row else "global",
        )
        for m, mask in zip(pool, masks, strict=True):
            w = weights.tensors[m.parameter].copy()
            weights.tensors[m.parameter] = ops.apply_mask_(w, mask, pattern=m.pattern)
            weights.patterns[m.name], weights.masks[m.name] = m.pattern, mask


def check_scorable(model: str | os.PathLike[str], task: Task) -> None:
    """Raise ValueError unless a checkpoint has a classifier of the task's classes."""
    encoder = Encoder.load(resolve_model(os.fspath(model), op="prune"))
    check_labels(encoder.config, task)
    if not encoder.has_classifier:
        raise ValueError(f"prune: {model} has no classifier, expected one to score on {task.name}")


def scores_of_encoder(encoder: Encoder, task: Task) -> dict[str, Score]:
    """The task's metrics on dev. Raises ValueError where classes and outputs don't fit."""
    check_labels(encoder.config, task)
    return scores_of(task, encoder.predict(task.dev.texts, task.dev.pairs).logits)
