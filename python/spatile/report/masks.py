"""Which groups of each matrix are kept, as pictures that a page holds itself. Needs NumPy alone."""

from __future__ import annotations

import base64
import html
import struct
import zlib
from typing import Any

import numpy as np

from spatile.inference import Encoder

__all__ = ["masks_section", "png_of"]

Array = np.ndarray[Any, Any]

# A pixel of the page is so many weights wide and high: a tile of 16 x 16 is 2 x 2 pixels.
_WEIGHTS_PER_PIXEL = 8
# Masks of more groups than this along a side are averaged to it.
_MOST = 128
_MATRICES = ("query", "key", "value", "output", "FFN up, turned", "FFN down")


def masks_section(encoder: Encoder) -> list[str]:
    """A row of pictures for each layer, dark where weights are kept; nothing where none is pruned.

    A matrix's picture has its shape, outputs from top to bottom, inputs from left to right; but the
    FFN's first is turned, so that a neuron stands at the same place in both of the FFN's.
    """
    masks = encoder.masks
    if not masks:
        return []
    a = encoder.architecture
    shapes = {matrix.name: matrix.shape for matrix in encoder.summary().matrices}
    rows = []
    for i, left in enumerate(a.structure.layers):
        n = a.layer(i)
        cells = [
            _picture(name, masks.get(name), shapes[name], turned=name == n.ffn[0])
            for name in (n.query, n.key, n.value, n.output, *n.ffn)
        ]
        rows.append(f"<tr><th>{left.layer}</th>{''.join(cells)}</tr>")
    titles = "".join(f"<th>{title}</th>" for title in ("layer", *_MATRICES))
    return [
        "<h2>What is kept of each matrix</h2>",
        f"<div class='wide'><table class='masks'><tr>{titles}</tr>{''.join(rows)}</table></div>",
        "<p class='note'>dark: kept; outputs from top to bottom, inputs left to right; turned: "
        "the other way round, so that a neuron is at the same place in both of an FFN's; below: "
        "the share of groups that is pruned</p>",
    ]


def _picture(name: str, mask: Array | None, shape: tuple[int, int], *, turned: bool) -> str:
    if mask is None:
        mask = np.ones((1, 1), bool)
    height, width = (max(1, n // _WEIGHTS_PER_PIXEL) for n in shape)
    if turned:
        mask, height, width = mask.T, width, height
    data = base64.b64encode(png_of(_shares(mask))).decode()
    title = html.escape(f"{name}: {shape[0]} x {shape[1]}", quote=True)
    return (
        f"<td><img alt='' title='{title}' width='{width}' height='{height}' "
        f"src='data:image/png;base64,{data}'><br>{100 * (1 - mask.mean()):.0f} %</td>"
    )


def _shares(mask: Array) -> Array:
    """(rows, columns) float: how much is kept of each group, or of blocks of them where many."""
    shares = mask.astype(np.float64)
    for axis in (0, 1):
        n = shares.shape[axis]
        each = -(-n // _MOST)
        starts = np.arange(0, n, each)
        counts = np.diff(np.append(starts, n)).reshape((-1, 1) if axis == 0 else (1, -1))
        shares = np.add.reduceat(shares, starts, axis=axis) / counts
    return shares


def png_of(shares: Array) -> bytes:
    """A grey PNG of shares in [0, 1], a pixel each: 0 is nearly white, 1 nearly black."""
    grey = np.rint(245 - 205 * shares).astype(np.uint8)
    rows, columns = grey.shape
    # Each row begins with its filter: none.
    raw = np.concatenate([np.zeros((rows, 1), np.uint8), grey], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
