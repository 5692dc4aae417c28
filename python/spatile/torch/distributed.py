"""Agreement between the processes of a data-parallel run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

__all__ = ["broadcast_from_first"]


def broadcast_from_first(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Give every process the first one's ``tensors`` (in place), as one message per dtype.

    Returns the positions where this process held something else. Does nothing outside a run with
    several processes; within one every process must call it, with the same shapes, and tensors on
    a device that its transport takes (NCCL: a GPU), all of a dtype on the same one.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return []
    differing: list[int] = []
    for dtype in sorted({t.dtype for t in tensors}, key=str):
        chosen = [i for i, t in enumerate(tensors) if t.dtype == dtype]
        # Not every transport carries bool.
        wire = torch.uint8 if dtype == torch.bool else dtype
        flat = torch.cat([tensors[i].reshape(-1).to(wire) for i in chosen])
        dist.broadcast(flat, src=0)
        parts = flat.split([tensors[i].numel() for i in chosen])
        for i, part in zip(chosen, parts, strict=True):
            first = part.view(tensors[i].shape).to(dtype)
            if not torch.equal(first, tensors[i]):
                differing.append(i)
                tensors[i].copy_(first)
    return sorted(differing)
