"""Loading and saving Hugging Face checkpoints, quietly and whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from spatile.finetune.data.task import Task
from spatile.finetune.run_folder import write_folder

__all__ = [
    "load_classifier",
    "load_encoder",
    "load_tokenizer",
    "quiet_transformers",
    "save_checkpoint",
]


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from writing bars and warnings of its own."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_classifier(
    source: str | Path, *, attention: str = "sdpa", task: Task | None = None
) -> Any:
    """A sequence classifier in float32, with the outputs of ``task`` where it is given.

    A head that the checkpoint lacks, or has with other outputs, is drawn from torch's generator.
    ``attention`` "auto" is spatile's where the model takes it, else "sdpa". Raises
    NotImplementedError where it does not take the one that is named.
    """
    changes: dict[str, Any] = {}
    if task is not None:
        changes["num_labels"] = task.outputs
        changes["problem_type"] = (
            "regression" if task.kind == "regression" else "single_label_classification"
        )
        if task.kind == "classification":
            changes["id2label"] = dict(enumerate(task.labels))
            changes["label2id"] = {name: i for i, name in enumerate(task.labels)}
    changes["ignore_mismatched_sizes"] = True
    return _load(AutoModelForSequenceClassification, source, attention, changes)


def load_encoder(source: str | Path, *, attention: str = "sdpa") -> Any:
    """The model without any head, in float32; ``attention`` as in :func:`load_classifier`."""
    return _load(AutoModel, source, attention, {})


def _load(kind: Any, source: str | Path, attention: str, changes: dict[str, Any]) -> Any:
    if attention == "auto":
        state = torch.get_rng_state()
        try:
            return _load(kind, source, "spatile", changes)
        except NotImplementedError:
            torch.set_rng_state(state)
            return _load(kind, source, "sdpa", changes)
    try:
        with quiet_transformers():
            model = kind.from_pretrained(source, attn_implementation=attention, **changes)
    except KeyError as error:
        if error.args != (attention,):
            raise
        raise NotImplementedError(
            f"finetune: attention is {attention!r}, expected 'sdpa' or 'eager': this model takes "
            f"no other in transformers {transformers.__version__}"
        ) from None
    return model.float()


def load_tokenizer(source: str | Path) -> Any:
    """The checkpoint's fast tokenizer."""
    with quiet_transformers():
        return AutoTokenizer.from_pretrained(source)


def save_checkpoint(path: Path, model: Any, tokenizer: Any) -> None:
    """Write what ``from_pretrained`` reads; the folder at ``path`` is replaced whole or not."""

    def write(folder: Path) -> None:
        with quiet_transformers():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    write_folder(path, write)
