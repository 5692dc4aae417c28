"""Time per example of several ways to run a classifier, measured by turns on the same batches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from spatile.finetune.data.task import Examples

__all__ = ["Runner", "batches_of", "measure", "torch_runner"]

#: Takes texts and, in a pair task, their pairs; returns when the logits are there.
Runner = Callable[[list[str], "list[str] | None"], object]


def batches_of(examples: Examples, batch_size: int) -> list[Examples]:
    """``examples`` in batches of similar length (by characters), longest first."""
    pairs = examples.pairs if examples.pairs is not None else [""] * len(examples)
    lengths = [len(a) + len(b) for a, b in zip(examples.texts, pairs, strict=True)]
    order = np.argsort([-n for n in lengths], kind="stable")
    return [
        examples.select(order[start : start + batch_size])
        for start in range(0, len(order), batch_size)
    ]


def measure(
    runners: Mapping[str, Runner], batches: Sequence[Examples], *, rounds: int
) -> dict[str, dict[str, float]]:
    """Milliseconds per example, ``median`` and ``min`` over ``rounds`` passes, for each runner.

    A pass goes over all batches, text in, logits out. In each round every runner has one pass, in
    an order that moves on by one from round to round, so that a machine that slows down or speeds
    up favours nobody. One round before them warms up and is not counted.
    """
    names = list(runners)
    count = sum(len(batch) for batch in batches)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-1, rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            run = runners[name]
            start = time.perf_counter()
            for batch in batches:
                run(batch.texts, batch.pairs)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {
        name: {
            "median": statistics.median(values) / count * 1e3,
            "min": min(values) / count * 1e3,
        }
        for name, values in seconds.items()
    }


def torch_runner(model: Any, tokenizer: Any, max_length: int) -> Runner:
    """A runner of a Hugging Face classifier: tokenize, pad to the batch's longest, forward."""
    import torch

    model.eval()

    def run(texts: list[str], pairs: list[str] | None) -> object:
        inputs = tokenizer(
            texts,
            pairs,
            truncation=True,
            max_length=max_length,
            padding=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            return model(**inputs).logits.numpy()

    return run
