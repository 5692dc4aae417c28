"""The highest sparsity whose loss stays under a bound, searched for by bisection.

The dense stage is trained once; each step of the search prunes it anew and retrains.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from spatile.finetune.data.columns import glue_metrics
from spatile.finetune.dense_start import dense_only, from_dense
from spatile.finetune.pipeline import finetune
from spatile.finetune.progress import Progress
from spatile.finetune.run_folder import RunFolder
from spatile.finetune.settings import Settings
from spatile.finetune.tasks import anchored, load_data
from spatile.finetune.weights import resolve_model
from spatile.report import is_above_floor, read_report
from spatile.sparsity import Plan, read_document, write_atomically

__all__ = ["RESOLUTION", "Search", "check_target_loss", "search_sparsity"]

_FORMAT, _VERSION = "spatile.search", 1

#: How far apart the sparsities are that are tried.
RESOLUTION = 0.05


def search_sparsity(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    target_loss: float,
    out: str | os.PathLike[str],
    resolution: float = RESOLUTION,
    resume: bool = False,
    threads: int | None = None,
    timing_rounds: int = 5,
    progress: Progress | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Bisect the multiples of ``resolution`` for the sparsest with a loss of ``target_loss``.

    The loss is the dense model's score minus the pruned one's on dev, in points (a hundredth) of
    the metric by which GLUE ranks the task. Other arguments are :func:`finetune`'s.

    ``out`` gets ``dense`` and ``tries/S``, folders of runs, ``search.json`` and, a link, ``best``.
    Returns what ``search.json`` holds: ``metric``, ``tries`` in the order in which they were made,
    each with ``sparsity``, ``achieved`` (the share of the encoder's weights that is gone),
    ``value``, ``dense``, ``loss`` and its paired 95 % interval ``low`` to ``high``, ``floor`` (the
    majority class's score), ``above_floor`` (whether the try is above it by more than its own
    interval; None where there is no floor), and ``result``, one of them or None, which says of
    itself that it is ``within`` the bound. A try that is not above the floor never is, whatever its
    loss: a model that always answers the majority class has learned nothing. The interval is over
    dev rows, for one seed: bisection takes each loss at its value, and where noise hides which side
    of the bound it is on, another seed may end elsewhere.

    A search that was stopped goes on with ``resume=True``: what was tried is not trained again.
    Raises ValueError for a bound out of range and for arguments other than the resumed search's,
    RuntimeError before anything is tried where the dense model is not above the floor itself, and
    otherwise as :func:`finetune` does.

    >>> from spatile.finetune.target_loss import search_sparsity                # doctest: +SKIP
    >>> search_sparsity("minilm", "data/qa", target_loss=1.0, out="run")["result"]["sparsity"]
    ...                                                                         # doctest: +SKIP
    0.35
    """
    check_target_loss(target_loss)
    if not 0.0 < resolution <= 0.5:
        raise ValueError(f"finetune: resolution is {resolution}, expected 0 < resolution ≤ 0.5")
    if settings.get("dev_ids") is not None:
        settings["dev_ids"] = anchored(settings["dev_ids"])
    wanted = Settings(
        model=resolve_model(os.fspath(model)),
        data=anchored(data),
        sparsity=0.0,
        **settings,
    )
    if wanted.plan is not None:
        raise ValueError("finetune: plan is given, expected none: target_loss finds the sparsity")
    progress = Progress(quiet=True) if progress is None else progress
    asked = {"target_loss": target_loss, "resolution": resolution}
    if resume:
        search = Search.open(out, wanted, asked)
    else:
        search = Search.create(out, wanted, asked)
        # Only what can be run may leave a folder, which would then be in the way.
        _check_runs(wanted)
    search.write()
    return search.run(progress, threads=threads, timing_rounds=timing_rounds)


def check_target_loss(value: float) -> None:
    """Raise ValueError unless ``value`` is a number of points that a loss may have."""
    if not (math.isfinite(value) and 0 < value < 100):
        raise ValueError(
            f"finetune: target_loss is {value:g}, expected points of the metric, above 0 and "
            f"below 100"
        )


class Search:
    """A search on disk. Make one with :meth:`create` or :meth:`open`."""

    def __init__(self, path: Path, settings: Settings, state: dict[str, Any]) -> None:
        self.path, self.settings, self.state = path, settings, state

    @staticmethod
    def is_in(path: str | os.PathLike[str]) -> bool:
        """Whether the folder holds a search."""
        return (Path(path) / "search.json").is_file()

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], settings: Settings, asked: dict[str, float]
    ) -> Search:
        """Start a search in an absent or empty folder, which :meth:`write` makes."""
        if cls.is_in(path):
            raise FileExistsError(
                f"finetune: out is {path}, which holds a search, expected an empty or new folder; "
                f"--resume continues the search"
            )
        RunFolder.check_new(path)
        dense_only(settings)
        return cls(
            Path(path), settings, {"format": _FORMAT, "version": _VERSION, **asked, "tries": []}
        )

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        settings: Settings | None = None,
        asked: dict[str, float] | None = None,
    ) -> Search:
        """Open a search that was started before, with what it must have been asked to do.

        Raises FileNotFoundError where there is none, ValueError for another or a damaged one.
        """
        state = read_document(
            Path(path) / "search.json",
            format=_FORMAT,
            version=_VERSION,
            missing=f"{path}: no search.json, expected the folder of a search",
        )
        saved = Settings.from_dict(state.pop("settings"))
        now = dict(asked or {})
        before = {name: state[name] for name in now}
        for name in [] if settings is None else saved.differences(settings):
            now[name], before[name] = getattr(settings, name), getattr(saved, name)
        for name in now:
            if now[name] != before[name]:
                raise ValueError(
                    f"finetune: {name} is {now[name]!r}, expected {before[name]!r} as in the "
                    f"search that {path} holds"
                )
        return cls(Path(path), saved, state)

    def write(self) -> None:
        """Write ``search.json``, whole or not at all."""
        state = {**self.state, "settings": self.settings.to_dict()}
        text = json.dumps(state, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "search.json", text.encode())

    def run(self, progress: Progress, *, threads: int | None, timing_rounds: int) -> dict[str, Any]:
        """Search to the end; returns the state."""
        dense = self.path / "dense"
        if not (dense / "report.json").is_file():
            _finetune(dense_only(self.settings), dense, threads, progress)
        _drop(dense, "trainer", "packed", "stages/pruned", "stages/retrained")
        self._check_dense(read_report(dense))
        steps = self._bisect(progress, threads)
        best = max((t for t in steps if t["within"]), key=lambda t: t["sparsity"], default=None)
        self.state["steps"] = [t["sparsity"] for t in steps]
        self.state["result"] = best
        if best is not None:
            folder = self._folder(best["sparsity"])
            if timing_rounds > 0 and read_report(folder)["timing"] is None:
                settings = self._settings(best["sparsity"])
                _finetune(settings, folder, threads, progress, timing_rounds)
            _link(self.path / "best", folder)
        self.write()
        return self.state

    def _check_dense(self, report: dict[str, Any]) -> None:
        """Raise RuntimeError where the dense model has learned nothing that could be lost."""
        metric = _metric_of(report)
        if is_above_floor(report, "dense", metric) is False:
            score, floor = report["scores"]["dense"][metric], report["floor"][metric]["value"]
            raise RuntimeError(
                f"finetune: the dense model's {metric} is {score['value']:.3f} "
                f"[{score['low']:.3f}, {score['high']:.3f}] on {report['data']['dev_rows']} dev "
                f"rows, expected above the majority class's {floor:.3f} by more than its interval: "
                f"it has nothing to lose, so no sparsity is tried; a search in a new folder with "
                f"more dense epochs, another rate or more rows may learn something (the dense "
                f"model's report is in {self.path / 'dense'})"
            )

    def _bisect(self, progress: Progress, threads: int | None) -> list[dict[str, Any]]:
        """What was tried on the way, the bound kept at the lower end and exceeded at the upper."""
        resolution = self.state["resolution"]
        low, high = 0, math.ceil(1 / resolution - 1e-9)
        steps = []
        while high - low > 1:
            middle = (low + high) // 2
            tried = self._try(round(middle * resolution, 10), progress, threads)
            learned = tried["above_floor"] is not False
            tried["within"] = learned and tried["loss"] <= self.state["target_loss"]
            steps.append(tried)
            low, high = (middle, high) if tried["within"] else (low, middle)
        for tried in self.state["tries"]:
            if tried["sparsity"] != round(low * resolution, 10):
                _drop(self._folder(tried["sparsity"]), "trainer", "stages", "packed")
        return steps

    def _try(self, sparsity: float, progress: Progress, threads: int | None) -> dict[str, Any]:
        folder = self._folder(sparsity)
        for tried in self.state["tries"]:
            if tried["sparsity"] == sparsity:
                if "above_floor" not in tried:  # noted by a version that did not look at the floor
                    tried |= _standing(read_report(folder))
                return dict(tried)
        progress.say(f"search: sparsity {sparsity:g}")
        report = _finetune(self._settings(sparsity), folder, threads, progress)
        metric = _metric_of(report)
        difference = report["differences"]["retrained - dense"][metric]
        if difference["value"] is None:
            raise RuntimeError(
                f"finetune: {metric} is undefined at sparsity {sparsity:g} or dense, expected a "
                f"number to compare with the target loss"
            )
        tried = {
            "sparsity": sparsity,
            "value": report["scores"]["retrained"][metric]["value"],
            "dense": report["scores"]["dense"][metric]["value"],
            "loss": 100 * (0 - difference["value"]),
            "low": 100 * (0 - difference["high"]),
            "high": 100 * (0 - difference["low"]),
            **_standing(report),
        }
        self.state["metric"], self.state["dev_rows"] = metric, report["data"]["dev_rows"]
        self.state["tries"].append(tried)
        self.write()
        progress.say(f"search: {describe(tried)}")
        _drop(folder, "trainer")
        return dict(tried)

    def _settings(self, sparsity: float) -> Settings:
        """Of a try, from the dense model where the search is now."""
        return from_dense(
            self.settings.with_changes(sparsity=sparsity), self.path / "dense" / "stages" / "dense"
        )

    def _folder(self, sparsity: float) -> Path:
        return self.path / "tries" / f"{sparsity:g}"


def describe(tried: dict[str, Any]) -> str:
    """A try in words.

    >>> tried = {"sparsity": 0.5, "achieved": 0.575, "loss": 1.25, "low": -0.5, "high": 3.0}
    >>> describe(tried | {"floor": 0.81, "above_floor": True})
    'sparsity 0.5 (57.5 % of the weights gone) loses 1.25 points [-0.50, 3.00]'
    """
    words = (
        f"{_sparsity(tried)} loses {tried['loss']:.2f} points "
        f"[{tried['low']:.2f}, {tried['high']:.2f}]"
    )
    if tried["above_floor"] is False:
        words += f", not above the majority class's {tried['floor']:.3f}"
    return words


def _sparsity(tried: dict[str, Any]) -> str:
    """Groups are what is asked for; where they are of unequal size, the weights gone differ."""
    words = f"sparsity {tried['sparsity']:g}"
    if abs(tried["achieved"] - tried["sparsity"]) > 0.005:
        words += f" ({100 * tried['achieved']:.1f} % of the weights gone)"
    return words


def summary_lines(state: dict[str, Any]) -> list[str]:
    """The path of a search and its result, in sentences."""
    bound, tries = state["target_loss"], {t["sparsity"]: t for t in state["tries"]}
    lines = [
        f"loss of {state['metric']} against the dense model, in points, with 95 % intervals over "
        f"{state['dev_rows']} dev rows:"
    ]
    for sparsity in state["steps"]:
        tried = tries[sparsity]
        verdict = "within the bound" if tried["loss"] <= bound else "too much"
        if tried["above_floor"] is False:
            verdict = "nothing learned"
        lines.append(f"  {describe(tried)}: {verdict}")
    best = state["result"]
    if best is None:
        words = f"no sparsity that was tried loses at most {bound:g} points"
        if any(tries[s]["above_floor"] is False for s in state["steps"]):
            words += " and is above the majority class's score"
        return [*lines, words]
    gone = _sparsity(best).removeprefix("sparsity ")
    lines.append(f"highest sparsity that loses at most {bound:g} points: {gone}")
    unsure = [t for s in state["steps"] if (t := tries[s])["low"] < bound < t["high"]]
    if best["high"] > bound:
        lines.append(
            f"its interval reaches {best['high']:.2f}: on so few dev rows the loss may exceed the "
            f"bound"
        )
    if unsure:
        lines.append(
            f"at {len(unsure)} of {len(state['steps'])} steps the bound lies within the interval: "
            f"another seed may end at another sparsity"
        )
    return lines


def _metric_of(report: dict[str, Any]) -> str:
    return glue_metrics(report["data"]["name"], report["data"]["metrics"])[0]


def _standing(report: dict[str, Any]) -> dict[str, Any]:
    """What is really gone of a try's weights, and how it stands to the majority class."""
    metric = _metric_of(report)
    return {
        "achieved": report["summary"]["packed"]["sparsity"],
        "floor": report["floor"][metric]["value"],
        "above_floor": is_above_floor(report, "retrained", metric),
    }


def _check_runs(settings: Settings) -> None:
    """Raise what the dense stage or a try would raise before its first step."""
    from spatile.finetune.training import prepare, stages_of

    task = load_data(settings)
    tried = settings.with_changes(sparsity=0.5, epochs_dense=0.0)
    stages_of(dense_only(settings), len(prepare(tried, task).train_data))


def _finetune(
    settings: Settings,
    out: Path,
    threads: int | None,
    progress: Progress,
    timing_rounds: int = 0,
) -> dict[str, Any]:
    given = settings.to_dict()
    plan = given.pop("plan")
    started = (out / "run.json").is_file()
    if started:  # maybe somewhere else: the dense model is in the search's own folder
        RunFolder.open(out).relocate(settings)
    return finetune(
        out=out,
        plan=None if plan is None else Plan.from_dict(plan),
        resume=started,
        threads=threads,
        timing_rounds=timing_rounds,
        progress=progress,
        **given,
    )


def _drop(run: Path, *names: str) -> None:
    for name in names:
        shutil.rmtree(run / name, ignore_errors=True)


def _link(link: Path, target: Path) -> None:
    fresh = link.with_name(f".{link.name}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
    os.replace(fresh, link)
