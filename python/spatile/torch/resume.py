"""The pruning state of the checkpoint that a Trainer resumes from: found, and checked."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

from torch import nn
from transformers import TrainerState, TrainingArguments

from spatile.sparsity import StageSteps, Structure
from spatile.torch.checkpoint import SavedState, read_state, weights_checksum
from spatile.torch.pruner import Pruner
from spatile.torch.structure import structure_of

__all__ = ["find_state", "resumed_structure"]


def find_state(
    args: TrainingArguments, state: TrainerState, pruner: Pruner, steps: StageSteps
) -> SavedState | None:
    """The saved state that belongs to the weights just loaded, at ``state.global_step`` steps.

    Looks into the folder that ``Trainer.train`` was given, then where this run would have saved.
    None where there is none and none is needed, because the penalty has not begun to act yet.
    Raises ValueError where one is needed, saying where it was looked for, and where it was made
    with another plan, method or stages.
    """
    seen: list[str] = []
    for folder in _candidates(args, state):
        saved = read_state(folder)
        if saved is None:
            seen.append(f"{folder} holds none")
        elif saved.values["step"] != state.global_step:
            seen.append(f"{folder} holds that of step {saved.values['step']}")
        elif saved.values["weights_crc32"] != weights_checksum(pruner):
            seen.append(f"{folder} holds that of other weights")
        else:
            _check_stages(folder, saved, steps)
            return saved
    if state.global_step <= steps.dense_end:
        return None
    raise ValueError(
        f"PruningCallback: no pruning state for step {state.global_step}: {'; '.join(seen)}. "
        f"Resume from a checkpoint that was saved to its end (see last_checkpoint)"
    )


def resumed_structure(model: nn.Module, saved: SavedState | None) -> Structure | None:
    """What ``model`` has left where the saved run had cut; None where it had not yet, or nothing.

    Raises ValueError unless the resumed model was cut as the checkpoint's was.
    """
    found = None if saved is None else saved.values["history"].get("structure")
    if found is None:
        return None
    structure = structure_of(model)
    if structure.to_dict() != found:
        raise ValueError(
            "PruningCallback: the resumed checkpoint's model has lost heads, neurons or "
            "layers, expected one cut likewise before the Trainer is made (apply_structure)"
        )
    return structure


def _candidates(args: TrainingArguments, state: TrainerState) -> list[Path]:
    places = [
        _resumed_folder(),
        getattr(args, "resume_from_checkpoint", None),
        os.path.join(args.output_dir, f"checkpoint-{state.global_step}"),
    ]
    folders: list[Path] = []
    for place in places:
        if isinstance(place, (str, os.PathLike)) and Path(place).is_dir():
            folders.append(Path(place))
    return list(dict.fromkeys(folders))


def _resumed_folder() -> object:
    # Trainer tells no callback which folder it loads: the path is an argument of the method that
    # raises on_train_begin, and of nothing else. A wrong guess does no harm, for the state found
    # must also carry the checksum of the loaded weights.
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "_inner_training_loop":
            return frame.f_locals.get("resume_from_checkpoint")
        frame = frame.f_back
    return None


def _check_stages(folder: Path, saved: SavedState, steps: StageSteps) -> None:
    before = saved.values["history"]["stages"]
    for name in ("dense_end", "reweighted_end", "ramp_steps"):
        if before[name] != getattr(steps, name):
            raise ValueError(
                f"{folder}: stages.{name} is {before[name]} steps, expected "
                f"{getattr(steps, name)} as in the resumed run"
            )
    # Runs of before there was gradual pruning pruned once.
    prunings = tuple(before.get("prunings", (before["reweighted_end"],)))
    if prunings != steps.prunings:
        raise ValueError(
            f"{folder}: stages.prunings are at steps {prunings}, expected {steps.prunings} as in "
            f"the resumed run"
        )
