"""What a sweep was asked to do: its grid, its settings, and the runs that these mean."""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from spatile.finetune.dense_start import DENSE_FIELDS, dense_only, from_dense
from spatile.finetune.settings import Settings
from spatile.finetune.weights import resolve_model
from spatile.patterns import as_pattern
from spatile.sweep.configuration import METHOD_NAME, Configuration

__all__ = ["GRID_FIELDS", "Cell", "Spec", "spell_settings"]

#: Settings that the grid and the sweep itself decide.
GRID_FIELDS = frozenset(
    {"model", "data", "sparsity", "pattern", "seed", "plan", "keep_tokens", "keep_heads"}
)

# A method is about what follows the dense stage, on the same rows. These of the dense stage's
# settings are also the later stages' own.
_SHARED = frozenset(
    {"batch_size", "lr", "warmup", "weight_decay", "attention", "linear", "bf16"}
    | {"checkpoint_every"}
)
_AXES = ("patterns", "sparsities", "seeds", "keep_tokens", "keep_heads")
_NOT_A_METHOD = GRID_FIELDS | (DENSE_FIELDS - _SHARED)


@dataclass(frozen=True)
class Cell:
    """One pruned model of a sweep."""

    configuration: Configuration
    seed: int

    @property
    def name(self) -> str:
        """How rows and messages call it."""
        return self.configuration.with_seed(self.seed)

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return self.name.replace(" ", "_").replace(":", "-")


@dataclass(frozen=True)
class Spec:
    """A grid over one model and task. All is checked when it is made.

    ``methods`` maps a name to what it changes of ``settings``, which are fields of
    :class:`spatile.finetune.Settings` that all cells share; the method "as-is" trains nothing: it
    runs the dense model on fewer tokens and heads, and belongs to sparsity 0 alone.
    ``keep_tokens`` and ``keep_heads`` are averages over the layers (``Schedule.linear``).
    ``latency_threads`` is how many threads the packed models are timed on. Relative paths are kept
    as they are, and seen from the folder ``started_in`` (default: the working directory); what is
    not there is looked for from the working directory.

    Raises ValueError naming the argument, what it is and what was expected.

    >>> spec = Spec("minilm", "data/qa", ("tile",), (0.5,), {"default": {}}, (0, 1))
    >>> [cell.name for cell in spec.cells()]
    ['tile default 0.5 seed 0', 'tile default 0.5 seed 1']
    """

    model: str
    data: str
    patterns: tuple[str, ...]
    sparsities: tuple[float, ...]
    methods: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any] | None = None
    task: str | None = None
    latency_threads: int = 1
    keep_tokens: tuple[float, ...] = (1.0,)
    keep_heads: tuple[float, ...] = (1.0,)
    started_in: str = ""

    def __post_init__(self) -> None:
        for name in _AXES:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "started_in", self.started_in or os.getcwd())
        object.__setattr__(self, "methods", {k: dict(v) for k, v in self.methods.items()})
        # Rows that --dev-rows leaves must be the same for all seeds, or nothing could be paired.
        given = {k: v for k, v in (self.settings or {}).items() if v is not None}
        object.__setattr__(self, "settings", {"data_seed": 0, **given})
        for name in (*_AXES, "methods"):
            if not getattr(self, name):
                raise ValueError(f"sweep: {name} is empty, expected at least one")
        for name in ("sparsities", "seeds", "keep_tokens", "keep_heads"):
            self._check_once(name, list(getattr(self, name)))
        self._check_once("patterns", [_spelled_out(p) for p in self.patterns])
        if any(seed < 0 for seed in self.seeds):
            raise ValueError(f"sweep: seeds is {list(self.seeds)}, expected numbers ≥ 0")
        if self.latency_threads < 1:
            raise ValueError(
                f"sweep: latency_threads is {self.latency_threads}, expected at least 1"
            )
        _check_names("settings", self.shared, GRID_FIELDS)
        for name, changes in self.methods.items():
            _check_names(f"method {name!r}", changes, _NOT_A_METHOD)
            if not METHOD_NAME.fullmatch(name):
                raise ValueError(
                    f"sweep: methods has the name {name!r}, expected letters, digits and _.+-"
                )
        self.dense_settings(self.seeds[0])
        folders: dict[str, Cell] = {}
        for cell in self.cells():
            self._check(cell)
            other = folders.setdefault(cell.folder, cell)
            if other is not cell:
                raise ValueError(
                    f"sweep: {cell.configuration!r} and {other.configuration!r} would both be "
                    f"kept in {cell.folder}, expected names and six digits that tell them apart"
                )

    @property
    def shared(self) -> dict[str, Any]:
        """The settings that all cells have in common."""
        return dict(self.settings or {})

    def cells(self) -> list[Cell]:
        """All pruned models, seed by seed within a configuration."""
        grid = itertools.product(
            self.methods, self.patterns, self.sparsities, self.keep_tokens, self.keep_heads
        )
        return [
            Cell(Configuration(pattern, method, sparsity, tokens, heads), seed)
            for method, pattern, sparsity, tokens, heads in grid
            for seed in self.seeds
        ]

    def trains(self, cell: Cell) -> bool:
        """Whether a cell's model is trained after the dense stage."""
        found = self.cell_settings(cell, "")
        return found.epochs_reweighted + found.epochs_retrain > 0

    def dense_settings(self, seed: int) -> Settings:
        """The run that trains the dense model of a seed."""
        return dense_only(self._settings(self.shared, sparsity=0.0, seed=seed))

    def cell_settings(self, cell: Cell, checkpoint: str | os.PathLike[str]) -> Settings:
        """The run that makes a cell's model out of its seed's dense ``checkpoint``."""
        c = cell.configuration
        changed = {**self.shared, **self.methods[c.method]}
        wanted = self._settings(
            changed,
            sparsity=c.sparsity,
            seed=cell.seed,
            pattern=c.pattern,
            keep_tokens=None if c.keep_tokens == 1.0 else c.keep_tokens,
            keep_heads=None if c.keep_heads == 1.0 else c.keep_heads,
        )
        return from_dense(wanted, checkpoint)

    def extended(self, other: Spec) -> Spec:
        """The grid with what ``other`` adds to it.

        Raises ValueError where rows of the two could not be compared: another model, data set,
        setting, method of the same name, or number of threads for the timing.
        """
        for name in ("model", "data"):
            places = [s._place(getattr(s, name)) for s in (self, other)]
            if places[0] != places[1]:
                _check_same(name, getattr(self, name), getattr(other, name))
            _check_same(name, *places)
        for name in ("task", "latency_threads"):
            _check_same(name, getattr(self, name), getattr(other, name))
        for name in sorted({*self.shared, *other.shared}):
            default = {f.name: f.default for f in fields(Settings)}.get(name)
            _check_same(name, *(s.shared.get(name, default) for s in (self, other)))
        for name in sorted({*self.methods} & {*other.methods}):
            _check_same(f"method {name!r}", self.methods[name], other.methods[name])
        return replace(
            self,
            patterns=_union(self.patterns, other.patterns),
            sparsities=tuple(sorted({*self.sparsities, *other.sparsities})),
            methods={**self.methods, **other.methods},
            seeds=_union(self.seeds, other.seeds),
            keep_tokens=_descending(self.keep_tokens, other.keep_tokens),
            keep_heads=_descending(self.keep_heads, other.keep_heads),
        )

    def command(self, out: str, *, dense: str | None = None) -> str:
        """The shell command that makes this sweep, with the dense models of the sweep ``dense``."""
        methods = ",".join(_spell_method(n, m) for n, m in self.methods.items())
        words = ["--model", self.model, "--data", self.data]
        words += [] if self.task is None else ["--task", self.task]
        words += ["--patterns", ",".join(self.patterns)]
        words += ["--sparsity", ",".join(map(_spell, self.sparsities))]
        for flag, kept in (("keep-tokens", self.keep_tokens), ("keep-heads", self.keep_heads)):
            words += [] if kept == (1.0,) else [f"--{flag}", ",".join(map(_spell, kept))]
        words += ["--methods", methods, "--seeds", ",".join(str(s) for s in self.seeds)]
        if self.latency_threads != 1:
            words += ["--latency-threads", str(self.latency_threads)]
        words += spell_settings(self.shared)
        words += [] if dense is None else ["--dense", dense]
        return shlex.join(["spatile", "sweep", *words, "--out", out])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form; :meth:`from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Spec:
        """Read what :meth:`to_dict` wrote."""
        return cls(**data)

    def _settings(self, given: Mapping[str, Any], **cell: Any) -> Settings:
        given = dict(given)
        if given.get("dev_ids") is not None:
            given["dev_ids"] = self._place(given["dev_ids"], os.path.isfile)
        return Settings(
            model=resolve_model(self._place(self.model), op="sweep"),
            data=self._place(self.data),
            **cell,
            **given,
        )

    def _place(self, name: str, is_there: Callable[[str], bool] = os.path.isdir) -> str:
        """The absolute path of what may be one; the name itself where nothing is there."""
        for folder in (self.started_in, os.getcwd()):
            path = os.path.join(folder, os.path.expanduser(name))
            if is_there(path):
                return os.path.abspath(path)
        return name

    def _check(self, cell: Cell) -> None:
        try:
            trains = self.trains(cell)
        except (TypeError, ValueError) as error:
            words = str(error).removeprefix("finetune: ")
            raise ValueError(f"sweep: {cell.name}: {words}") from error
        c = cell.configuration
        if not trains and c.sparsity > 0:
            raise ValueError(
                f"sweep: {cell.name}: sparsity is {c.sparsity:g}, expected 0 with method "
                f"{c.method!r}, which trains nothing"
            )

    def _check_once(self, name: str, values: list[Any]) -> None:
        for i, value in enumerate(values):
            if value in values[:i]:
                raise ValueError(f"sweep: {name} has {value!r} twice, expected each once")


def _spelled_out(pattern: str) -> str:
    return pattern if pattern in ("attention-aware", "structure") else str(as_pattern(pattern))


def _check_names(what: str, given: Mapping[str, Any], refused: frozenset[str]) -> None:
    known = {f.name for f in fields(Settings)}
    for name in given:
        if name not in known:
            raise ValueError(f"sweep: {what} has {name!r}, expected a setting of finetune")
        if name in refused:
            raise ValueError(f"sweep: {what} has {name!r}, which the sweep itself decides")


def _check_same(name: str, before: Any, now: Any) -> None:
    if before != now:
        raise ValueError(
            f"sweep: {name} is {now!r}, expected {before!r} as in the sweep that was started"
        )


def _union(first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*first, *(value for value in second if value not in first))


def _descending(first: tuple[float, ...], second: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(sorted({*first, *second}, reverse=True))


def _spell_method(name: str, changes: Mapping[str, Any]) -> str:
    from spatile.sweep.parsing import METHODS

    if METHODS.get(name) == changes:
        return name
    return f"{name}=" + ";".join(f"{key}:{_spell(value)}" for key, value in changes.items())


def spell_settings(settings: Mapping[str, Any]) -> list[str]:
    """The flags that mean a sweep's shared settings.

    >>> spell_settings({"data_seed": 0, "bf16": True, "lr": 1e-4})
    ['--bf16', '--lr', '0.0001']
    """
    # Every sweep has data_seed 0 that is not told another one.
    given = [(k, v) for k, v in settings.items() if (k, v) != ("data_seed", 0)]
    return [word for name, value in given for word in _spell_flag(name, value)]


def _spell_flag(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool) and name != "precompute":
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, (list, tuple)):
        return [f"--{flag}", *(str(v) for v in value)]
    return [f"--{flag}", _spell(value)]


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return repr(value) if isinstance(value, float) and float(short) != value else short
