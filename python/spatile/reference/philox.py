"""The counter-based generator behind attention's dropout.

Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), with the
constants of its Random123 library. A counter and a key give four words; no state is kept, so the
backward pass finds each bit of the mask again from where it stands.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW_32 = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)


def philox4x32(counter: ArrayLike, seed: int) -> NDArray[np.uint32]:
    """Ten rounds over ``counter`` (…, 4), unsigned 32-bit; returns the four words, (…, 4) uint32.

    The key is ``seed``, an integer of up to 64 bits: its low 32 bits first.

    >>> [hex(int(word)) for word in philox4x32([0, 0, 0, 0], 0)]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = np.moveaxis(np.asarray(counter, dtype=np.uint64), -1, 0)
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (second >> _SHIFT_32) ^ c1 ^ np.uint64(k0),
            second & _LOW_32,
            (first >> _SHIFT_32) ^ c3 ^ np.uint64(k1),
            first & _LOW_32,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def dropout_keep(
    heads: int, sq: int, sk: int, *, dropout: float, seed: int, sequence: int = 0
) -> NDArray[np.bool_]:
    """Which probabilities of one sequence survive dropout: bool (heads, sq, sk), True = kept.

    Element (head, i, j) takes word ``j & 3`` of the counter (j >> 2, i, head, sequence), and is
    kept iff that word is at least floor(dropout · 2³²). ``i`` and ``j`` are positions within the
    sequence.

    >>> bool(dropout_keep(2, 3, 5, dropout=0.0, seed=7).all())
    True
    """
    blocks = -(-sk // 4)
    counter = np.empty((heads, sq, blocks, 4), np.uint64)
    counter[..., 0] = np.arange(blocks)
    counter[..., 1] = np.arange(sq)[:, None]
    counter[..., 2] = np.arange(heads)[:, None, None]
    counter[..., 3] = sequence
    words = philox4x32(counter, seed).reshape(heads, sq, 4 * blocks)[:, :, :sk]
    return words >= np.uint64(math.floor(dropout * 2**32))
