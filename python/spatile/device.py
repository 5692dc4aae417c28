"""Devices: what this machine offers, arrays in a GPU's memory, which CPU tier is in use, threads.

Two environment variables. ``SPATILE_CUDA_LIBRARY`` is the file of the CUDA backend, otherwise
``libspatile_cuda.so`` in this package; it is read when a GPU is first asked for. ``SPATILE_DEVICE``
is for tests and tries, and read once, on import: "cuda", "cuda:N", or "cuda-on-cpu" for the
emulated library; then NumPy arrays are copied to that device, and back, at every call of an op.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from spatile import _core
from spatile._core import DeviceArray
from spatile._version import __version__

__all__ = [
    "DeviceArray",
    "devices",
    "from_dlpack",
    "info",
    "num_threads",
    "set_num_threads",
    "synchronize",
    "to_device",
]


def gpu_number(op: str, device: str) -> int | None:
    """N of "cuda:N" and 0 of "cuda"; None for "cpu". ValueError for anything else."""
    if device == "cpu":
        return None
    match = re.fullmatch(r"cuda(?::(\d{1,4}))?", device) if isinstance(device, str) else None
    if match is None:
        raise ValueError(f"{op}: device is {device!r}, expected 'cpu', 'cuda' or 'cuda:N'")
    return int(match[1] or 0)


def devices() -> tuple[str, ...]:
    """The devices that ops can run on here: "cpu", then "cuda:0" and so on.

    Asking loads the CUDA backend, if there is one; :func:`info` says why there are no GPUs.

    >>> import spatile as sp
    >>> "cpu" in sp.devices()
    True
    """
    try:
        count = _core.gpu_count()
    except RuntimeError:
        count = 0
    return ("cpu", *(f"cuda:{i}" for i in range(count)))


def to_device(x: Any, device: str = "cuda") -> Any:
    """A copy of an array on a GPU, or in host memory for "cpu"; where it is there already, itself.

    Parameters
    ----------
    x : a NumPy array, a :class:`DeviceArray`, or what speaks DLPack on either side
    device : "cuda", "cuda:N" or "cpu"

    Returns
    -------
    :class:`DeviceArray`, contiguous where it was copied; for "cpu" a NumPy array.

    Raises
    ------
    ValueError (device; x on another GPU), TypeError (x, its dtype), RuntimeError (no GPU here, in
    the loader's or the driver's words), MemoryError.

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> x = np.ones((2, 3), np.float32)
    >>> sp.to_device(x, "cpu") is x
    True
    >>> if "cuda:0" in sp.devices():
    ...     assert (sp.gelu(sp.to_device(x)).numpy() == sp.gelu(x)).all()
    """
    op = "to_device"
    number = gpu_number(op, device)
    *_, here = (None, -1) if isinstance(x, np.ndarray) else _core.addresses(x, op)
    if number is None:
        if here >= 0:
            return _core.from_device(x).numpy()
        return x if isinstance(x, np.ndarray) else np.from_dlpack(x)
    if here >= 0:
        if here != number:
            raise ValueError(
                f"{op}: x is on cuda:{here}, expected it on the CPU or on cuda:{number}"
            )
        return x if isinstance(x, DeviceArray) else _core.from_device(x)
    if isinstance(x, np.ndarray):
        x = np.ascontiguousarray(x) if x.ndim else x
    elif hasattr(x, "contiguous"):  # torch's
        x = x.contiguous()
    return _core.to_device(x, number)


def from_dlpack(x: Any) -> Any:
    """The same memory as an array of ours: a :class:`DeviceArray` on a GPU, else NumPy's.

    Parameters
    ----------
    x : what has ``__dlpack__`` or ``__cuda_array_interface__``: torch, CuPy, JAX, Numba, …

    Returns
    -------
    :class:`DeviceArray` or a NumPy array; nothing is copied, and x's memory lives as long.

    Raises
    ------
    TypeError (x), RuntimeError (no GPU for spatile here).

    Examples
    --------
    >>> import numpy as np, spatile as sp
    >>> x = np.zeros(3, np.float32)
    >>> np.shares_memory(sp.from_dlpack(x), x)
    True
    """
    *_, here = _core.addresses(x, "from_dlpack")
    return _core.from_device(x) if here >= 0 else np.from_dlpack(x)


def synchronize(device: str = "cuda") -> None:
    """Wait until a GPU has done what ops enqueued on it. Its failures are raised here.

    Ops on device arrays return before the GPU is through; ``numpy()`` waits by itself. Nothing
    happens for "cpu".

    >>> import spatile as sp
    >>> sp.synchronize("cpu")
    """
    number = gpu_number("synchronize", device)
    if number is not None:
        _core.gpu_synchronize(number)


def num_threads() -> int:
    """Threads of the CPU backend."""
    return _core.num_threads()


def set_num_threads(n: int) -> None:
    """Size the CPU backend's thread pool; the default is OMP_NUM_THREADS or the cores at hand.

    Raises ValueError unless 1 ≤ n ≤ 256.
    """
    _core.set_num_threads(n)


def info() -> dict[str, Any]:
    """Version, devices, CPU tier in use with the reason for it, the tiers that run here, threads.

    The tier is ``"none"`` where the environment variable SPATILE_CPU_TIER names one that does not
    run here; then every op raises RuntimeError. ``gpu`` has the library, cuBLAS's file or why it
    is not used, and what the driver says of each GPU; or, in the loader's or the driver's own
    words, the reason why there is none.

    >>> import spatile as sp
    >>> sp.info()["cpu"]["tier"] in sp.info()["cpu"]["tiers"]
    True
    """
    tier, reason, tiers = _core.cpu_tier()
    return {
        "version": __version__,
        "devices": list(devices()),
        "cpu": {
            "tier": tier,
            "reason": reason,
            "tiers": list(tiers),
            "threads": num_threads(),
        },
        "gpu": _gpus(),
    }


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _gpus() -> dict[str, Any]:
    try:
        count = _core.gpu_count()
        found = [_core.gpu_info(i) for i in range(count)]
    except RuntimeError as failure:
        reason = str(failure).removeprefix("cuda: ")
        return {"available": False, "library": _core.gpu_library()[0], "reason": reason}
    library, backend = _core.gpu_library()
    described = []
    for i, (name, major, minor, memory, free, _, _, multiprocessors, _) in enumerate(found):
        described.append(
            {
                "device": f"cuda:{i}",
                "name": name,
                "compute_capability": f"{major}.{minor}",
                "memory": memory,
                "free_memory": free,
                "multiprocessors": multiprocessors,
            }
        )
    driver, runtime = found[0][5:7]
    cublas = found[0][8]
    return {
        "available": True,
        "library": library,
        "backend": backend,
        "driver": _version(driver),
        "runtime": _version(runtime),
        "cublas": cublas,
        "devices": described,
    }


def _set_cpu_tier(name: str) -> None:
    """For tests and benchmarks: use another tier from now on. ValueError if it can't run here."""
    _core.select_cpu_tier(name)
