"""From texts to batches: tokens, batches of similar length, padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from spatile.finetune.data.task import Examples

__all__ = ["Encoded", "collate", "encode", "plan_batches"]

_POOL = 50  # batches that are sorted by length together


@dataclass(frozen=True, eq=False)
class Encoded:
    """Tokenized examples: one dict of unpadded integer lists per row, and their labels (n,)."""

    rows: list[dict[str, list[int]]]
    labels: Any
    pad: Callable[[list[dict[str, list[int]]]], dict[str, torch.Tensor]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, dict[str, list[int]]]:
        return index, self.rows[index]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row["input_ids"]) for row in self.rows]


def encode(tokenizer: Any, examples: Examples, max_length: int) -> Encoded:
    """Tokenize ``examples``, cut to ``max_length`` tokens."""
    out = tokenizer(
        examples.texts,
        examples.pairs,
        truncation=True,
        max_length=max_length,
        padding=False,
    )
    names = [n for n in ("input_ids", "token_type_ids", "attention_mask") if n in out]
    rows = [{n: list(out[n][i]) for n in names} for i in range(len(examples))]
    fill = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": 0, "attention_mask": 0}

    def pad(chosen: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in chosen)
        return {
            n: torch.tensor([row[n] + [fill[n]] * (width - len(row[n])) for row in chosen])
            for n in names
        }

    return Encoded(rows, examples.labels, pad)


def collate(data: Encoded) -> Callable[[Sequence[tuple[int, Any]]], dict[str, torch.Tensor]]:
    """A function that pads items of ``data`` to the longest and adds ``labels`` and ``index``."""

    def together(items: Sequence[tuple[int, Any]]) -> dict[str, torch.Tensor]:
        index = [i for i, _ in items]
        batch = data.pad([row for _, row in items])
        batch["labels"] = torch.as_tensor(np.asarray(data.labels)[index])
        batch["index"] = torch.tensor(index)
        return batch

    return together


def plan_batches(
    lengths: Sequence[int], batch_size: int, *, steps: int, seed: int
) -> list[list[int]]:
    """The rows of each of a run's ``steps`` batches: epoch after epoch, drawn by ``seed`` alone.

    Within an epoch, rows are shuffled, sorted by length within pools of 50 batches, so that little
    is padded, and the batches are shuffled again. The last batch of an epoch may be smaller.

    >>> epoch = plan_batches([5, 5, 5], 2, steps=2, seed=0)
    >>> sorted(row for batch in epoch for row in batch)
    [0, 1, 2]
    """
    sizes = np.asarray(lengths)
    random = np.random.default_rng(seed)
    batches: list[list[int]] = []
    while len(batches) < steps:
        order = random.permutation(len(sizes))
        epoch: list[list[int]] = []
        for start in range(0, len(order), _POOL * batch_size):
            pool = order[start : start + _POOL * batch_size]
            pool = pool[np.argsort(-sizes[pool], kind="stable")]
            epoch += [
                [int(i) for i in pool[j : j + batch_size]] for j in range(0, len(pool), batch_size)
            ]
        batches += [epoch[i] for i in random.permutation(len(epoch))]
    return batches[:steps]
