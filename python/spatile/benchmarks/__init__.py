"""What `spatile bench` measures: each case a ratio of two sides in one process.

A result is checked before it is timed. Ours and the peers then take turns on the same input, with
the same threads, warmed up; a ratio is the peer's time over ours, so above 1 is better for us.
"""

from __future__ import annotations

__all__ = ["NAMES", "PEERS"]

#: The benchmarks, in the order in which ``all`` runs them; each is the module of its name.
NAMES = (
    "linear",
    "attention",
    "attention-backward",
    "encoder",
    "tokens",
    "regularizer",
    "train-step",
    "second-order",
)

#: The libraries that are measured beside ours where they are installed.
PEERS = ("torch", "onnxruntime", "openvino")
