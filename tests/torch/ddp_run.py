"""Run by torchrun in test_distributed.py: two processes, one Trainer each."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from spatile.sparsity import Schedule
from spatile.torch import HeadPruning, Plan, PruningCallback, Stages, TokenPruning


def main(out: Path, resume: str | None) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=32,
    )
    # Different weights per process until DistributedDataParallel makes them those of process 0.
    torch.manual_seed(rank)
    config._attn_implementation = "spatile"
    model = transformers.BertForSequenceClassification(config)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 40, (24, 12), generator=generator)
    rows = [{"input_ids": row, "labels": int(row[1] > 21)} for row in ids]
    callback = PruningCallback(
        Plan.attention_aware(config, 0.5), stages=Stages(1, 1, 1), scope="global"
    )
    args = transformers.TrainingArguments(
        output_dir=str(out / "run"),
        num_train_epochs=3,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        save_strategy="steps",
        save_steps=4,
        report_to=[],
        use_cpu=True,
        ddp_backend="gloo",
        disable_tqdm=True,
    )
    half = Schedule.per_layer([1, 0.5])
    tokens, heads = TokenPruning(half, delay=1, gradual=1), HeadPruning(half, delay=1, gradual=1)
    trainer = transformers.Trainer(
        model, args, train_dataset=rows, callbacks=[callback, tokens, heads]
    )
    trainer.train(resume_from_checkpoint=resume)
    name = f"rank{rank}" if resume is None else f"resumed{rank}"
    save_file({n: p.detach().clone() for n, p in model.named_parameters()}, out / f"{name}.weights")
    save_file({n: m.clone() for n, m in callback.masks.items()}, out / f"{name}.masks")
    (out / f"{name}.json").write_text(
        json.dumps({**callback.history, "kept": tokens.kept.counts[1].tolist()})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
