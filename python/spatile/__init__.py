"""spatile makes BERT-like transformers small and fast while they are fine-tuned, then runs them.

The ops are here (NumPy in, NumPy out; arrays of a GPU likewise); :mod:`spatile.reference` defines
each in plain float64.
Pruning while training is in :mod:`spatile.sparsity` and :mod:`spatile.torch`, running the result in
:mod:`spatile.inference`. Importing this package needs NumPy alone.
"""

from spatile._version import __version__
from spatile.device import (
    DeviceArray,
    devices,
    from_dlpack,
    info,
    num_threads,
    set_num_threads,
    synchronize,
    to_device,
)
from spatile.ops import *  # noqa: F403
from spatile.ops import __all__ as _ops
from spatile.patterns import Column, Element, Head, Pattern, Row, Tile, as_pattern

__all__ = [
    *_ops,
    "Column",
    "DeviceArray",
    "Element",
    "Head",
    "Pattern",
    "Row",
    "Tile",
    "__version__",
    "as_pattern",
    "devices",
    "from_dlpack",
    "info",
    "num_threads",
    "set_num_threads",
    "synchronize",
    "to_device",
]
