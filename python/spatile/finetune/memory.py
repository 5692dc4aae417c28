"""How the process gets its memory."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h's names for them


def keep_freed_memory() -> bool:
    """Have malloc keep freed memory for the rest of the process, instead of giving it back.

    Each training step frees its gradients and activations and asks for as much again. What comes
    back from the system are pages that have to be cleared one by one, a tenth to a third of a
    step; the largest gradient, the embeddings', is of a size that glibc gives back every time.
    Returns whether the C library knows how.

    >>> keep_freed_memory() in (True, False)
    True
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1)) and bool(mallopt(_MMAP_THRESHOLD, 2**30))
