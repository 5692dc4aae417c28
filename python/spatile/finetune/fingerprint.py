"""A checksum of a task's rows, so that a run is resumed on the data that it was started with."""

from __future__ import annotations

import hashlib

import numpy as np

from spatile.finetune.data.task import Task

__all__ = ["fingerprint"]


def fingerprint(task: Task) -> str:
    """SHA-256 over classes, texts and labels of train and dev, as hexadecimal digits."""
    digest = hashlib.sha256("\0".join(task.labels).encode())
    for split in (task.train, task.dev):
        digest.update(np.ascontiguousarray(split.labels).tobytes())
        for texts in (split.texts, split.pairs or []):
            for text in texts:
                raw = text.encode()
                digest.update(len(raw).to_bytes(8, "little"))
                digest.update(raw)
    return digest.hexdigest()
