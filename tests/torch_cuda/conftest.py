"""spatile.torch on CUDA tensors: on a GPU, or on the emulated backend (see emulated.py).

SPATILE_DEVICE is not for these tests: what they compare with is computed on the CPU.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import spatile as sp

from .emulated import GPU, emulated_cuda

# On a machine with a GPU the tests run with what its Python has.
collect_ignore = []
if find_spec("transformers") is None:
    collect_ignore = ["test_models.py", "test_pruning.py", "test_trainer.py"]
elif find_spec("accelerate") is None:
    collect_ignore = ["test_trainer.py"]


def is_real() -> bool:
    """Whether PyTorch has a GPU."""
    return bool(torch.cuda.is_available())


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a device that PyTorch's CUDA tensors and spatile's ops share."""
    emulation = "cuda_on_cpu" in os.environ.get("SPATILE_CUDA_LIBRARY", "")
    if not (is_real() or emulation):
        pytest.skip("PyTorch has no GPU, and SPATILE_CUDA_LIBRARY names no emulated one")
    if "cuda:0" not in sp.devices():
        pytest.skip(str(sp.info()["gpu"]["reason"]))
    if is_real():
        yield "cuda"
        return
    with emulated_cuda(monkeypatch):
        yield "cuda"


Autocast = Callable[[str], contextlib.AbstractContextManager[None]]


@pytest.fixture
def autocast() -> Autocast:
    """bfloat16 autocast on the CPU or on the GPU."""

    @contextlib.contextmanager
    def run(device: str) -> Iterator[None]:
        if device == "cpu" or is_real():
            with torch.autocast(device, torch.bfloat16):
                yield
            return
        # An emulated tensor is PyTorch's on the CPU and ours on the GPU.
        was = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            with torch.autocast("cpu", torch.bfloat16):
                yield
        finally:
            torch.set_autocast_enabled("cuda", was[0])
            torch.set_autocast_dtype("cuda", was[1])

    return run


@pytest.fixture
def make_bert() -> Callable[..., Any]:
    """A fresh classifier of two layers, without dropout; the same seed gives the same weights."""

    def make(attention: str = "eager", seed: int = 0, **changes: Any) -> Any:
        import transformers

        torch.manual_seed(seed)
        settings = {
            "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 48, "max_position_embeddings": 16, "num_labels": 2,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **changes,
        }  # fmt: skip
        config = transformers.BertConfig(**settings)
        config._attn_implementation = attention
        return transformers.BertForSequenceClassification(config)

    return make


@pytest.fixture
def batches() -> list[dict[str, torch.Tensor]]:
    """Four batches of 4 padded texts: the class is whether the second token is above the middle."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(4):
        ids = torch.randint(4, 40, (4, 8), generator=generator)
        mask = (torch.arange(8) < torch.tensor([[8], [5], [7], [3]])).long()
        labels = (ids[:, 1] > 21).long()
        found.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return found


def on(device: str, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch there."""
    return {name: t.to(device) for name, t in batch.items()}


@pytest.fixture
def trainer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, batches: list[dict[str, torch.Tensor]]
) -> Callable[..., Any]:
    """Train ``model`` on a device with callbacks and return the Trainer. 4 steps an epoch."""
    rows = [{name: t[i] for name, t in batch.items()} for batch in batches for i in range(4)]

    def run(
        device: str, model: Any, *callbacks: Any, resume: str | None = None, **given: Any
    ) -> Any:
        import transformers

        settings = {
            "output_dir": str(tmp_path / device), "num_train_epochs": 3, "learning_rate": 1e-3,
            "per_device_train_batch_size": 4, "save_strategy": "no", "report_to": [],
            "use_cpu": device == "cpu" or not is_real(), "disable_tqdm": True,
            "logging_strategy": "steps", "logging_steps": 1, "seed": 3, **given,
        }  # fmt: skip
        args = transformers.TrainingArguments(**settings)
        args._n_gpu = min(1, args.n_gpu)  # several would be DataParallel's
        with monkeypatch.context() as patch:
            if device == "cuda" and not is_real():
                import accelerate

                patch.setattr(accelerate.Accelerator, "device", GPU)
                patch.setattr(transformers.TrainingArguments, "device", GPU)
            made = transformers.Trainer(model, args, train_dataset=rows, callbacks=[*callbacks])
            made.train(resume_from_checkpoint=resume)
        return made

    return run
