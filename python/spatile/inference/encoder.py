"""The torch-free encoder: load a checkpoint, dense or pruned, and run it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from spatile.device import gpu_number
from spatile.inference.architecture import Architecture, read_architecture
from spatile.inference.batching import Encoded, batches, encoded_of
from spatile.inference.compile import compile_encoder
from spatile.inference.explain import Explanation, explanation_of
from spatile.inference.files import (
    read_json,
    read_pooling,
    write_json,
    write_pooling,
    write_tensors,
)
from spatile.inference.head import ClassifierHead, Predictions, read_head
from spatile.inference.packed import MANIFEST, is_packed, read_packed, write_packed
from spatile.inference.running import EncoderRun, Pruning, checked_schedules, run_engine
from spatile.inference.summary import Summary, linear_multiply_adds, summarize
from spatile.inference.tokenization import copy_tokenizer, load_tokenizer, tokenizer_limit
from spatile.inference.weights import EncoderWeights, apply_plan, expand_tensors, read_checkpoint
from spatile.sparsity import Plan, Schedule

__all__ = ["Encoded", "Encoder"]

Array = np.ndarray[Any, Any]


class Encoder:
    """A BERT, DistilBERT or RoBERTa encoder that runs without torch, all layers in one C call.

    Make one with :meth:`load`. Inputs of different lengths are packed back to back, so no time goes
    into padding. Thread-safe.
    """

    def __init__(
        self,
        weights: EncoderWeights,
        config: dict[str, Any],
        *,
        plan: Plan | None = None,
        folder: Path | None = None,
        pooling: str = "first",
        device: str = "cpu",
        compute: str = "float32",
        tokens: Schedule | None = None,
        heads: Schedule | None = None,
    ) -> None:
        self.config = config
        self.device = device
        self.compute = compute
        self.plan = plan
        self.pooling = pooling
        self.architecture: Architecture = read_architecture(config, source=weights.source)
        self._pruning = checked_schedules(Pruning(tokens, heads), self.architecture)
        self._weights = weights
        self._folder = folder
        self._engine, self._layers = compile_encoder(
            weights, self.architecture, self._precompute(), compute, gpu_number("Encoder", device)
        )
        self._head: ClassifierHead | None = read_head(weights, self.architecture, config)
        self._tokenizer = None if folder is None else load_tokenizer(folder)
        limit = None if folder is None else tokenizer_limit(folder)
        self.max_tokens = min(self.architecture.max_tokens, limit or self.architecture.max_tokens)

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        *,
        plan: Plan | str | PathLike[str] | None = None,
        device: str = "cpu",
        compute: str = "float32",
        tokens: Schedule | None = None,
        heads: Schedule | None = None,
    ) -> Encoder:
        """Load a Hugging Face checkpoint (safetensors and config.json), or a packed model.

        Parameters
        ----------
        path : the folder
        plan : for a checkpoint whose pruned weights are zeros: the plan (or its file) that it was
            pruned by; groups that are exactly zero are dropped. A packed model has its own.
        device : "cpu"; or "cuda", "cuda:N": weights and layers are then on that GPU, inputs and
            results in host memory, and products in bfloat16 run on its tensor cores
        compute : what products are done in: "float32", or "bfloat16" with sums in float32, which
            processors with AVX512_BF16 or AMX do at twice the speed or more; others get the same
            results more slowly than in float32
        tokens, heads : how many of an input's tokens, and of the heads, each layer works on: the
            most important ones so far (SpAtten, HPCA 2021). Default: those that a packed model was
            saved with, otherwise all; ``Schedule.linear(1.0)`` keeps all. What is selected for an
            input does not depend on what else is in its batch (but in float32 the last bits of
            products with element-pruned matrices do, and may decide between near equals); on the
            CPU a probability below 2⁻²⁷ counts as none. Value
            rows that are pruned, or that W_O no longer reads, are no part of a head, and a layer
            does not have a head without others. A layer with fewer heads than the dense model's
            loses fewer, and never its last; where W_V and W_O are merged a head's magnitude is
            measured behind W_O.

        Raises
        ------
        FileNotFoundError, ValueError (files that are missing, damaged or disagree;
        a schedule that does not fit the model's layers),
        NotImplementedError (another architecture or compute), RuntimeError (no such GPU, in the
        loader's or the driver's words).

        Examples
        --------
        >>> from spatile.inference import Encoder                          # doctest: +SKIP
        >>> Encoder.load("RUN/packed").predict(["It works."]).labels      # doctest: +SKIP
        ['positive']
        """
        gpu_number("Encoder.load", device)
        if compute not in ("float32", "bfloat16"):
            raise ValueError(
                f"Encoder.load: compute is {compute!r}, expected 'float32' or 'bfloat16'"
            )
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
        if is_packed(folder):
            if plan is not None:
                raise ValueError(f"Encoder.load: {folder} is packed and has its own plan")
            return cls._load_packed(folder, device, compute, tokens, heads)
        if not (folder / "config.json").exists():
            raise FileNotFoundError(f"{folder}: no config.json in this folder")
        config = read_json(folder / "config.json")
        architecture = read_architecture(config, source=str(folder / "config.json"))
        weights = read_checkpoint(folder, architecture)
        chosen = plan if plan is None or isinstance(plan, Plan) else Plan.load(plan)
        if chosen is not None:
            apply_plan(weights, chosen, architecture.structure)
        return cls(
            weights,
            config,
            plan=chosen,
            folder=folder,
            pooling=read_pooling(folder),
            device=device,
            compute=compute,
            tokens=tokens,
            heads=heads,
        )

    @classmethod
    def _load_packed(
        cls,
        folder: Path,
        device: str,
        compute: str,
        tokens: Schedule | None,
        heads: Schedule | None,
    ) -> Encoder:
        weights, manifest = read_packed(folder)
        stored = Pruning.from_dict(manifest.get("schedules"), source=str(folder / MANIFEST))
        given = manifest.get("plan")
        plan = None if given is None else Plan.from_dict(given, source=str(folder))
        return cls(
            weights,
            manifest["config"],
            plan=plan,
            folder=folder,
            pooling=str(manifest.get("pooling", "first")),
            device=device,
            compute=compute,
            tokens=stored.tokens if tokens is None else tokens,
            heads=stored.heads if heads is None else heads,
        )

    def _precompute(self) -> tuple[bool, ...]:
        """Which layers merge W_V and W_O; the plan numbers them as the dense model does."""
        given = () if self.plan is None else self.plan.precompute
        left = self.architecture.structure
        if given and len(given) != left.n_layers:
            raise ValueError(
                f"{self._weights.source}: precompute has {len(given)} layers, "
                f"expected {left.n_layers}"
            )
        return tuple(given[kept.layer] for kept in left.layers) if given else ()

    # ---- schedules ------------------------------------------------------------------------------

    @property
    def tokens(self) -> Schedule | None:
        """How many of an input's tokens each layer works on; None: all. May be set between runs.

        Setting it raises TypeError for what is no schedule, ValueError for one that does not fit.
        """
        return self._pruning.tokens

    @tokens.setter
    def tokens(self, schedule: Schedule | None) -> None:
        changed = replace(self._pruning, tokens=schedule)
        self._pruning = checked_schedules(changed, self.architecture)

    @property
    def heads(self) -> Schedule | None:
        """With how many of the heads each layer works on an input; as ``tokens``."""
        return self._pruning.heads

    @heads.setter
    def heads(self, schedule: Schedule | None) -> None:
        changed = replace(self._pruning, heads=schedule)
        self._pruning = checked_schedules(changed, self.architecture)

    # ---- running --------------------------------------------------------------------------------

    def tokenize(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        max_tokens: int | None = None,
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Token and type ids of each input, special tokens added, cut to ``max_tokens``.

        Raises ValueError where the model has no tokenizer, or texts and pairs differ in count.
        """
        encodings, types = self._encodings(texts, pairs, max_tokens)
        return [e.ids for e in encodings], types

    def _encodings(
        self, texts: Sequence[str], pairs: Sequence[str] | None, max_tokens: int | None = None
    ) -> tuple[list[Any], list[list[int]]]:
        if self._tokenizer is None:
            raise ValueError(f"{self._folder}: no tokenizer in the model's folder")
        limit = self.max_tokens if max_tokens is None else min(max_tokens, self.max_tokens)
        return self._tokenizer.encode(texts, pairs, limit)

    def run(
        self,
        ids: Sequence[Sequence[int]],
        types: Sequence[Sequence[int]] | None = None,
        *,
        first_only: bool = False,
        protect: Any | None = None,
    ) -> EncoderRun:
        """Run token ids through the layers, in one call.

        Parameters
        ----------
        ids, types : one list of each input; types default to 0
        first_only : hidden states of the inputs' first tokens alone, for which the last layer
            computes nothing else
        protect : tokens that stay besides each input's first: positions, negative ones counted
            from an input's end, or a bool for each token of all inputs

        Raises ValueError for ids outside the vocabulary, inputs longer than the model has
        positions, positions that an input does not have, and importance that is NaN.
        """
        return run_engine(
            self._engine,
            self.architecture,
            [layer.heads for layer in self._layers],
            self._pruning,
            ids,
            types,
            first_only=first_only,
            protect=protect,
            element=2 if self.compute == "bfloat16" else 4,
        )

    def forward(
        self,
        ids: Sequence[Sequence[int]],
        types: Sequence[Sequence[int]] | None = None,
        *,
        first_only: bool = False,
    ) -> tuple[Array, Array]:
        """``hidden`` and ``offsets`` of :meth:`run`, which says the rest."""
        done = self.run(ids, types, first_only=first_only)
        return done.hidden, done.offsets

    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        max_tokens: int | None = None,
        protect: Sequence[int] | None = None,
    ) -> Predictions:
        """Classify texts, or pairs of texts; ``protect`` as in :meth:`run`, positions alone.

        Raises ValueError where the model has no classification head or no tokenizer.
        """
        if self._head is None:
            raise ValueError(
                f"{self._weights.source}: predict needs a classification head, the model has none"
            )
        ids, types = self.tokenize(texts, pairs, max_tokens=max_tokens)
        first = np.empty((len(ids), self.architecture.width), np.float32)
        cost = self.run([]).cost
        for rows, sure in batches(ids, batch_size, protect):
            done = self.run(ids[rows], types[rows], first_only=True, protect=sure)
            first[rows] = done.hidden
            cost += done.cost
        return replace(self._head.predictions(first), cost=cost)

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        max_tokens: int | None = None,
        protect: Sequence[int] | None = None,
    ) -> Encoded:
        """Hidden states of the tokens that are kept, and one pooled vector per input.

        ``protect`` as in :meth:`run`, positions alone.
        """
        ids, types = self.tokenize(texts, pairs, max_tokens=max_tokens)
        runs = [self.run([])]
        runs += [
            self.run(ids[rows], types[rows], protect=sure)
            for rows, sure in batches(ids, batch_size, protect)
        ]
        return encoded_of(runs, self.pooling)

    def explain(
        self,
        text: str,
        pair: str | None = None,
        *,
        max_tokens: int | None = None,
        protect: Sequence[int] | None = None,
    ) -> Explanation:
        """Which words and heads each layer works on for one input, and what that saves.

        The same run as :meth:`predict` makes (:meth:`encode` where the model has no head).
        ``protect`` as in :meth:`run`, positions alone.

        Raises ValueError where the model has no tokenizer, TypeError for a text that is no string.

        >>> from spatile.inference import Encoder                                # doctest: +SKIP
        >>> from spatile.sparsity import Schedule                                # doctest: +SKIP
        >>> encoder = Encoder.load("RUN/packed", tokens=Schedule.linear(0.5))    # doctest: +SKIP
        >>> print(encoder.explain("A gorgeous, witty, seductive movie."))        # doctest: +SKIP
        """
        for name, value in (("text", text), ("pair", pair)):
            if not isinstance(value, str) and (name == "text" or value is not None):
                found = type(value).__name__
                raise TypeError(f"Encoder.explain: {name} is a {found}, expected a string")
        pairs = None if pair is None else [pair]
        (encoding,), types = self._encodings([text], pairs, max_tokens)
        head = self._head
        run = self.run([encoding.ids], types, first_only=head is not None, protect=protect)
        return explanation_of(
            (text, pair),
            encoding,
            run,
            self.architecture,
            schedules=(self.tokens, self.heads),
            predictions=None if head is None else head.predictions(run.hidden),
        )

    # ---- knowing and keeping --------------------------------------------------------------------

    def multiply_adds(self, lengths: Iterable[int]) -> int:
        """Multiply-adds of the layers where every token and head stays: products, scores, values.

        For inputs of these lengths, whatever the schedules are. What a run did with them is its
        ``cost`` (:class:`Cost`).
        """
        per_token = linear_multiply_adds(self._layers)
        per_pair = sum(layer.score_width + layer.value_width for layer in self._layers)
        return sum(per_token * n + per_pair * n * n for n in map(int, lengths))

    def summary(self) -> Summary:
        """Sparsity and bytes of each matrix, and what the compiled products cost."""
        return summarize(self._weights, self.architecture, self._layers)

    @property
    def has_classifier(self) -> bool:
        """Whether there is a head for :meth:`predict`."""
        return self._head is not None

    @property
    def masks(self) -> dict[str, Array]:
        """Which groups of each pruned matrix are kept, by the matrix's name: bool, True = kept."""
        return {name: mask.copy() for name, mask in self._weights.masks.items()}

    def save(self, path: str | PathLike[str]) -> None:
        """Write the packed form into a folder, with the tokenizer's files beside it.

        The encoder's schedules are part of it: :meth:`load` takes them up again.

        Raises OSError where the folder cannot be written: a packed model that it held is then
        still whole. Raises ValueError for a folder that holds a checkpoint, TypeError for a
        schedule by a function of the length, which no file can hold.
        """
        schedules = self._pruning.to_dict()
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        if not is_packed(folder) and any(folder.glob("model*.safetensors")):
            raise ValueError(f"Encoder.save: {folder} holds a checkpoint, expected another folder")
        copy_tokenizer(self._folder, folder)
        write_packed(
            folder,
            self._weights,
            {
                "config": self.config,
                "plan": None if self.plan is None else self.plan.to_dict(),
                "pooling": self.pooling,
                "schedules": schedules,
            },
        )

    def export(self, path: str | PathLike[str]) -> None:
        """Write a dense checkpoint, zeros where pruned, for transformers' ``from_pretrained``.

        It holds no schedules: whoever runs it gives its own.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        if is_packed(folder):
            raise ValueError(f"Encoder.export: {folder} holds a packed model, expected another")
        copy_tokenizer(self._folder, folder)
        bare = self._head is None
        prefix = self.architecture.prefix
        tensors = {}
        for name, tensor in expand_tensors(self._weights.tensors, self.architecture).items():
            inside = name.startswith(("embeddings.", "encoder.", "transformer."))
            if inside and not bare:
                name = prefix + name
            elif bare:
                name = name.removeprefix(prefix)
            tensors[name] = tensor
        write_tensors(folder / "model.safetensors", tensors)
        write_json(folder / "config.json", self.config)
        write_pooling(folder, self.pooling, self.architecture.width)

    def __repr__(self) -> str:
        a = self.architecture
        return (
            f"Encoder({a.family}, {a.n_layers} layers of width {a.width}, "
            f"{self.summary().sparsity:.0%} pruned)"
        )
