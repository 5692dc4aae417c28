"""The layers of a model, one after another, on the inputs that calibration texts give them."""

from __future__ import annotations

import contextlib
import inspect
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn

from spatile import ops
from spatile.torch.evaluation import evaluation_mode
from spatile.torch.parameters import batch_for, unwrap

__all__ = [
    "ENOUGH_TOKENS",
    "LayerWalk",
    "calibration_batches",
    "check_indexable",
    "enough_rows",
]

#: With fewer, the gram of a feed-forward layer of a few thousand neurons is mostly its damping.
ENOUGH_TOKENS = 25_000

_LAYER = re.compile(r"((?:^|.*\.)(?:encoder\.layer|transformer\.layer|h))\.\d+\Z")


class _FirstLayer(Exception):  # noqa: N818, it is no error
    """The model has come to its first layer."""


class LayerWalk:
    """Goes through the encoder's layers of ``model``, with all batches at one layer at a time.

    So what layer i sees can be what the layers before it give *after* they have been changed, at
    the cost of running each layer once or twice. ``batches`` are dicts of tensors as the model
    takes them, without labels, on any device; padding (``attention_mask`` 0) counts nowhere. It all
    runs on the model's device, on a GPU by our own product, which rounds no float32 factor (as
    PyTorch's may, to TF32), and grams stay there. The model is in
    evaluation mode, keeps all tokens and heads, and no gradient is recorded, while the walk is
    open::

        with LayerWalk(model, batches) as walk:
            for prefix in walk.layers:          # "bert.encoder.layer.0", …
                grams = walk.grams([prefix + ".output.dense"])
                ...                             # change this layer's weights
                walk.advance()                  # the next layer sees what the changed one gives

    Memory: the hidden states of all batches. Layers are those of BERT, RoBERTa, DistilBERT and
    GPT-2. Raises ValueError for a model that has none of them, and where ``batches`` is empty.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Mapping[str, torch.Tensor]]) -> None:
        self._model = unwrap(model)
        self._modules = dict(self._model.named_modules())
        self.layers = tuple(name for name in self._modules if _LAYER.match(name))
        if not self.layers:
            raise ValueError(
                f"LayerWalk: model is a {type(self._model).__name__} without encoder.layer, "
                f"transformer.layer or h, expected BERT, RoBERTa, DistilBERT or GPT-2"
            )
        self._batches = [batch_for(self._model, batch) for batch in batches]
        if not self._batches:
            raise ValueError("LayerWalk: batches is empty, expected at least one batch")
        self._at = 0
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._valid: list[torch.Tensor | None] = []

    def __enter__(self) -> LayerWalk:
        self._at = 0
        self._calls.clear()
        self._valid.clear()
        # A cache of keys would grow each time that a layer runs.
        takes_cache = "use_cache" in inspect.signature(self._model.forward).parameters
        options: dict[str, Any] = {"use_cache": False} if takes_cache else {}
        self._open = contextlib.ExitStack()
        self._open.enter_context(torch.no_grad())
        self._open.enter_context(evaluation_mode(self._model))
        first = self._modules[self.layers[0]]
        hook = first.register_forward_pre_hook(self._arrive, with_kwargs=True)
        try:
            for batch in self._batches:
                mask = batch.get("attention_mask")
                self._valid.append(None if mask is None else mask.bool())
                with contextlib.suppress(_FirstLayer):
                    self._model(**{**batch, **options})
        except BaseException:
            self.__exit__(None, None, None)
            raise
        finally:
            hook.remove()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        torch.clear_autocast_cache()
        self._calls.clear()
        self._open.__exit__(kind, value, trace)

    @property
    def inputs(self) -> list[torch.Tensor]:
        """What the current layer sees: each batch's valid tokens (tokens, width)."""
        return [
            _valid_rows(args[0], mask)
            for (args, _), mask in zip(self._calls, self._valid, strict=True)
        ]

    def grams(self, names: Sequence[str], *, advance: bool = False) -> dict[str, torch.Tensor]:
        """XᵀX of what modules of the current layer see, as it is now: float64 (in, in) by name.

        ``advance`` goes on to the next layer with what this one gave, as :meth:`advance` would.
        Raises ValueError for a module that is not in the current layer, or that did not run.
        """
        here = self.layers[self._at]
        # Autocast would go on with its copies of weights that have been changed since.
        torch.clear_autocast_cache()
        grams: dict[str, torch.Tensor] = {}
        # Q, K and V see one tensor, one after another; its product is made once.
        last: tuple[torch.Tensor, torch.Tensor] | None = None
        valid: torch.Tensor | None = None
        hooks = []

        def listen(name: str) -> Any:
            def hear(module: nn.Module, args: tuple[Any, ...]) -> None:
                nonlocal last
                x = args[0]
                if last is None or last[0] is not x:
                    # Of bfloat16 inputs, as under autocast, bfloat16 products are exact.
                    how: Any = "bfloat16" if x.dtype == torch.bfloat16 else None
                    columns = _valid_rows(x, valid).float().t().contiguous()
                    last = x, ops.linear(columns, columns, compute=how).double()
                gram = last[1]
                grams[name] = grams[name].add_(gram) if name in grams else gram.clone()

            return hear

        try:
            for name in names:
                if not name.startswith(f"{here}.") or name not in self._modules:
                    raise ValueError(f"LayerWalk: {name} is asked for at {here}, expected a part")
                hooks.append(self._modules[name].register_forward_pre_hook(listen(name)))
            for i, (args, kwargs) in enumerate(self._calls):
                valid = self._valid[i]
                out = self._modules[here](*args, **kwargs)
                if advance:
                    self._calls[i] = ((_hidden(out), *args[1:]), kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        missing = [name for name in names if name not in grams]
        if missing:
            raise ValueError(f"LayerWalk: {missing[0]} did not run in {here}")
        if advance:
            self._at = min(self._at + 1, len(self.layers) - 1)
        return grams

    def advance(self) -> None:
        """Run the current layer and go on to the next one."""
        layer = self._modules[self.layers[self._at]]
        torch.clear_autocast_cache()
        for i, (args, kwargs) in enumerate(self._calls):
            self._calls[i] = ((_hidden(layer(*args, **kwargs)), *args[1:]), kwargs)
        self._at = min(self._at + 1, len(self.layers) - 1)

    def _arrive(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not args:  # some versions of transformers pass it by name
            kwargs = dict(kwargs)
            args = (kwargs.pop("hidden_states"),)
        self._calls.append((args, kwargs))
        raise _FirstLayer


def calibration_batches(
    model: nn.Module, dataloader: Any, *, rows: int | None, seed: int, batch_size: int = 32
) -> list[dict[str, torch.Tensor]]:
    """``rows`` rows of a loader's data, drawn by ``seed``, as batches without their labels.

    None: as many as hold :data:`ENOUGH_TOKENS`. Draws nothing from any shared generator and leaves
    the loader as it is. Where the data has ``lengths``, rows of similar length go together. Raises
    ValueError where it can't be indexed.
    """
    check_indexable(dataloader)
    data = dataloader.dataset
    count = len(data) if rows is None else min(rows, len(data))
    chosen = random.Random(seed).sample(range(len(data)), count)
    lengths = getattr(data, "lengths", None)
    if lengths is not None:
        if rows is None:
            chosen = chosen[: enough_rows([lengths[i] for i in chosen])]
        chosen.sort(key=lambda i: -lengths[i])
    known = inspect.signature(unwrap(model).forward).parameters
    batches: list[dict[str, torch.Tensor]] = []
    tokens = 0
    for start in range(0, len(chosen), batch_size):
        items = [data[i] for i in chosen[start : start + batch_size]]
        batch = dataloader.collate_fn(items)
        taken = {k: v for k, v in batch.items() if k in known and k not in ("labels", "label")}
        batches.append(taken)
        mask = taken.get("attention_mask")
        tokens += int(next(iter(taken.values())).numel() if mask is None else mask.sum())
        if rows is None and lengths is None and tokens >= ENOUGH_TOKENS:
            break
    return batches


def check_indexable(dataloader: Any) -> None:
    """Raise ValueError for data of which rows can't be drawn."""
    data = getattr(dataloader, "dataset", None)
    if (
        data is None
        or isinstance(data, torch.utils.data.IterableDataset)
        or not hasattr(data, "__getitem__")
        or not hasattr(data, "__len__")
    ):
        raise ValueError(
            "PruningCallback: the training data can't be indexed, expected calibration=batches"
        )


def enough_rows(lengths: Sequence[int]) -> int:
    """How many of these rows, from the first on, hold :data:`ENOUGH_TOKENS`; or all of them."""
    total = 0
    for i, length in enumerate(lengths):
        total += length
        if total >= ENOUGH_TOKENS:
            return i + 1
    return len(lengths)


def _hidden(out: Any) -> Any:
    """A layer's hidden states; some versions of transformers give them in a tuple."""
    return out[0] if isinstance(out, tuple) else out


def _valid_rows(x: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """(tokens, width): the valid tokens of (batch, sequence, width)."""
    return x.flatten(0, -2) if valid is None else x[valid]
