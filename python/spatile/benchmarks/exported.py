"""A transformers model as ONNX files in the cache folder: plain, fused for BERT, and int8."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from spatile.benchmarks.machine import cache_folder

__all__ = ["Exported"]

_MADE_WITH = ("torch", "transformers", "onnx", "onnxruntime")
_OPSET = 17


class Exported:
    """``model``'s ONNX files, each made when first asked for.

    They are kept for the next run under a name of the model's shape, the packages' versions and the
    weights, in the platform's cache folder, or where that can't be written in a temporary one.
    """

    def __init__(self, name: str, model: Any) -> None:
        self._model = model
        self._name = f"{name.lower()}-{_key(model)}"
        self._folder = cache_folder()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            writable = os.access(self._folder, os.W_OK)
        except OSError:
            writable = False
        if not writable:
            self._temporary = tempfile.TemporaryDirectory(prefix="spatile-bench-")
            self._folder = Path(self._temporary.name)

    def plain(self) -> Path:
        """As torch exports it, for OpenVINO. Raises ModuleNotFoundError without onnx."""
        return self._made("plain", self._export)

    def fused(self) -> Path:
        """With attention, GELU and LayerNorm as ONNX Runtime's fused operators."""

        def fuse(path: Path) -> None:
            from onnxruntime.transformers.optimizer import optimize_model

            config = self._model.config
            optimized = optimize_model(
                str(self.plain()),
                model_type="bert",
                num_heads=config.num_attention_heads,
                hidden_size=config.hidden_size,
            )
            optimized.save_model_to_file(str(path))

        return self._made("fused", fuse)

    def int8(self) -> Path:
        """The fused form with int8 weights, activations quantized as they come."""

        def quantize(path: Path) -> None:
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantize_dynamic(
                str(self.fused()),
                str(path),
                weight_type=QuantType.QInt8,
                # The fused operators' results have no inferred type: 1 is onnx's FLOAT.
                extra_options={"DefaultTensorType": 1},
            )

        return self._made("int8", quantize)

    def _made(self, form: str, make: Callable[[Path], None]) -> Path:
        """The file, made in a folder beside and renamed when it is whole."""
        final = self._folder / f"{self._name}-{form}.onnx"
        if final.exists():
            return final
        scratch = Path(tempfile.mkdtemp(prefix=".", dir=self._folder))
        try:
            with _quiet():
                make(scratch / final.name)
            os.replace(scratch / final.name, final)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return final

    def _export(self, path: Path) -> None:
        import onnx  # noqa: F401 - the exporter needs it, and fails without it late and otherwise
        import torch

        # Eager attention is what the fusions know.
        eager = type(self._model)(self._model.config, add_pooling_layer=False).eval()
        eager.set_attn_implementation("eager")
        eager.load_state_dict(self._model.state_dict())

        class Hidden(torch.nn.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.model = eager

            def forward(self, input_ids: Any, attention_mask: Any) -> Any:
                return self.model(
                    input_ids=input_ids, attention_mask=attention_mask
                ).last_hidden_state

        ids = torch.randint(1000, 2000, (2, 16))
        axes = {0: "batch", 1: "tokens"}
        torch.onnx.export(
            Hidden(),
            (ids, torch.ones_like(ids)),
            str(path),
            input_names=["input_ids", "attention_mask"],
            output_names=["hidden"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "hidden": axes},
            # The fusions look for what this exporter writes.
            dynamo=False,
            opset_version=_OPSET,
        )


def _key(model: Any) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name in _MADE_WITH:
        with contextlib.suppress(PackageNotFoundError):
            digest.update(f"{name} {version(name)} ".encode())
    config = {k: v for k, v in model.config.to_dict().items() if not k.startswith("_")}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk much: on warnings, the log and standard output."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
