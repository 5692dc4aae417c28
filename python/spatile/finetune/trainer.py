"""One Trainer run over all stages, in batches that are planned beforehand.

The run is a single epoch to the Trainer: its batches are listed for all stages at once, so that a
resumed run skips to exactly the batch that it was killed at, in every version of transformers.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from spatile.finetune.batches import collate, plan_batches
from spatile.finetune.job import Job
from spatile.finetune.settings import Settings
from spatile.finetune.teacher import Teacher

__all__ = ["StageTrainer", "training_arguments"]


class StageTrainer(Trainer):  # type: ignore[misc]
    """A Trainer with planned batches, a learning rate that starts anew in each stage, a teacher.

    ``teacher`` is asked once training has passed the dense stage; None trains on labels alone.
    """

    def __init__(
        self,
        job: Job,
        args: TrainingArguments,
        *,
        callbacks: list[TrainerCallback],
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__(
            model=job.model, args=args, train_dataset=job.train_data, callbacks=callbacks
        )
        self.remove_callback(PrinterCallback)
        # The loss below is a plain mean; the Trainer must not rescale it.
        self.model_accepts_loss_kwargs = False
        self._settings, self._steps, self._data = job.settings, job.steps, job.train_data
        self._batches = plan_batches(
            self._data.lengths,
            self._settings.batch_size,
            steps=args.max_steps,
            seed=self._settings.seed,
        )
        self._teacher = teacher

    def get_train_dataloader(self) -> DataLoader[Any]:
        # A generator of its own: the loader would otherwise draw from the one that dropout uses.
        return DataLoader(
            self._data,
            batch_sampler=self._batches,
            collate_fn=collate(self._data),
            generator=torch.Generator(),
        )

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer if optimizer is None else optimizer,
            lambda step: self._steps.lr_factor(
                step, warmup=self._settings.warmup, rates=self._settings.lr_factors
            ),
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        labels = inputs.pop("labels")
        taught: torch.Tensor | float = 0.0
        if self._teacher is not None and self.state.global_step >= self._steps.dense_end:
            outputs, taught = self._teacher.run(model, inputs)
        else:
            inputs.pop("index")
            outputs = model(**inputs)
        logits = outputs.logits.float()
        if logits.shape[-1] == 1:
            loss = F.mse_loss(logits[:, 0], labels.float())
        else:
            loss = F.cross_entropy(logits, labels.long())
        if self._teacher is not None and self.state.global_step >= self._steps.dense_end:
            loss = (1 - self._settings.distill) * loss + taught
        return (loss, outputs) if return_outputs else loss


def training_arguments(
    folder: Path, settings: Settings, *, max_steps: int, save_steps: int
) -> TrainingArguments:
    """Arguments that mean the same in transformers 4.50 and in 5."""
    known = inspect.signature(TrainingArguments).parameters
    wanted: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": max_steps,
        "per_device_train_batch_size": settings.batch_size,
        "learning_rate": settings.lr,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "bf16": settings.bf16,
        "seed": settings.seed,
        "use_cpu": True,
        "save_strategy": "steps",
        "save_steps": save_steps,
        # One that is whole must be left while another is being written.
        "save_total_limit": 2,
        "logging_strategy": "steps",
        "logging_steps": 10,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "log_level": "error",
    }
    return TrainingArguments(**{k: v for k, v in wanted.items() if k in known})
