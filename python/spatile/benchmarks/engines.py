"""The peers of an encoder: PyTorch, ONNX Runtime and OpenVINO on the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from spatile.benchmarks.exported import Exported
from spatile.benchmarks.models import Batch
from spatile.benchmarks.runner import Bench

__all__ = ["TOLERANCE", "Engine", "engines", "torch_hidden"]

#: |error| / max |hidden state| against transformers in float32: what the format loses over the
#: layers in its worst element (int8: up to a third was seen). A result of other weights, or without
#: its mask, is beyond 1.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "int8": 0.5}

Bind = Callable[[Batch], Callable[[], Any]]


@dataclass(frozen=True)
class Engine:
    """One peer's model; ``bind`` gives a batch's run, which returns (b, longest, width)."""

    name: str
    precision: str
    bind: Bind


def torch_hidden(model: Any, batch: Batch) -> Callable[[], Any]:
    """The model's hidden states (b, longest, width); no mask where nothing is padded."""
    import torch

    inputs = {name: torch.from_numpy(x) for name, x in batch.padded.items()}
    if len(set(batch.lengths)) == 1:
        del inputs["attention_mask"]

    def run() -> Any:
        with torch.inference_mode():
            return model(**inputs).last_hidden_state

    return run


def engines(bench: Bench, name: str, model: Any, threads: int) -> list[Engine]:
    """Those that are installed; who is absent is said."""
    exported = Exported(name, model)
    found: list[Engine] = []
    makers: dict[str, Callable[[], Iterator[Engine]]] = {
        "torch": lambda: _torch(model),
        "onnxruntime": lambda: _onnxruntime(exported, threads),
        "openvino": lambda: _openvino(bench, exported, threads),
    }
    for package, make in makers.items():
        if bench.peer(package) is None:
            continue
        try:
            found += make()
        except ModuleNotFoundError as error:
            bench.leave_out(f"{package}: absent, it needs {error.name}, which is not installed")
    return found


def _torch(model: Any) -> Iterator[Engine]:
    import torch

    # Weights converted once: autocast, which converts them in every run, was slower throughout.
    half = copy.deepcopy(model).to(torch.bfloat16)
    yield Engine("torch", "float32", lambda batch: torch_hidden(model, batch))
    yield Engine("torch bfloat16", "bfloat16", lambda batch: torch_hidden(half, batch))


def _onnxruntime(exported: Exported, threads: int) -> Iterator[Engine]:
    import onnxruntime

    def session(path: Any) -> Bind:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Threads that spin on after a run doubled the time of what came next, on 2 cores. Never
        # spinning cost ONNX Runtime a tenth; spinning until the run's end costs neither anything.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        made = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda batch: lambda: made.run(None, batch.padded)[0]

    yield Engine("onnxruntime", "float32", session(exported.fused()))
    yield Engine("onnxruntime int8", "int8", session(exported.int8()))


def _openvino(bench: Bench, exported: Exported, threads: int) -> Iterator[Engine]:
    import openvino

    core = openvino.Core()
    for hint, precision in (("f32", "float32"), ("bf16", "bfloat16")):
        if hint == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            bench.leave_out("openvino bf16: it has no bfloat16 on this processor")
            continue
        settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        request = core.compile_model(str(exported.plain()), "CPU", settings).create_infer_request()

        def bind(batch: Batch, request: Any = request) -> Callable[[], Any]:
            return lambda: request.infer(batch.padded, share_inputs=True, share_outputs=True)[0]

        yield Engine(f"openvino {hint}", precision, bind)
