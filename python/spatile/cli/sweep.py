"""``spatile sweep``: what pruning costs and gains, over patterns, methods, sparsities and seeds."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from spatile.cli.usage import PRECOMPUTE, UsageError, add_command

__all__ = ["add", "run"]

_EXAMPLES = """\
spatile sweep --model minilm --data data/qa --sparsity 0.3,0.5,0.7 --seeds 0,1,2 --out SWEEP
spatile sweep --model ./bert --data ./mrpc --patterns tile,row,column --sparsity 0.3:0.9:0.2 \\
    --methods default,none,long=epochs_retrain:6;lr:3e-5 --seeds 0,1,2 --jobs 2 --out SWEEP
spatile sweep --model minilm --data ./cola --keep-tokens 1,0.7,0.5 --keep-heads 1,0.75 \\
    --methods as-is,default --seeds 0,1,2 --out SWEEP
spatile sweep --resume --out SWEEP
spatile sweep --tables docs/results/*.json --out docs/results.md"""

_GRID = (
    *("model", "data", "patterns", "sparsity", "keep_tokens", "keep_heads", "methods", "seeds"),
    *("task", "latency_threads"),
)
_OWN = (*_GRID, "run", "debug", "out", "resume", "jobs", "threads", "timing_rounds", "keep")
_OWN_TOO = ("json", "quiet", "tables", "preset", "dense")


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command."""
    parser = add_command(
        commands, "sweep", "train and time a grid of pruned models, over several seeds", _EXAMPLES
    )
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument(
        "--out", required=True, metavar="SWEEP", help="the sweep's folder, new or empty"
    )
    parser.add_argument("--resume", action="store_true", default=False, help="continue --out")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once (1)")
    parser.add_argument(
        "--threads", type=int, default=None, help="of each run (the cores, shared out)"
    )
    parser.add_argument(
        "--timing-rounds",
        type=int,
        default=7,
        metavar="N",
        help="passes of the timing after training (default 7; 0: none)",
    )
    parser.add_argument(
        "--keep", action="store_true", default=False, help="keep all checkpoints of finished runs"
    )
    parser.add_argument(
        "--dense", metavar="SWEEP", default=None, help="take another sweep's dense models"
    )
    parser.add_argument("--json", action="store_true", default=False, help="print the rows as JSON")
    parser.add_argument("--quiet", action="store_true", default=False, help="show no progress")
    parser.add_argument(
        "--tables",
        nargs="+",
        metavar="ROWS",
        help="train nothing: write tables of these rows.json files to --out, a Markdown file",
    )
    _grid(parser)
    _settings(parser)
    return parser


def _grid(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("grid")
    group.add_argument("--model", metavar="DIR|NAME", help="as in finetune")
    group.add_argument("--data", metavar="DIR|NAME", help="as in finetune")
    group.add_argument("--patterns", metavar="P,P…", help="tile (default), row, attention-aware, …")
    group.add_argument("--sparsity", metavar="S,S…", help="0.3,0.5 or 0.3:0.9:0.1")
    for unit in ("tokens", "heads"):
        group.add_argument(
            f"--keep-{unit}",
            metavar="K,K…",
            help=f"{unit} kept, on average over the layers: 1,0.7,0.5 (default 1)",
        )
    group.add_argument(
        "--methods",
        metavar="M,M…",
        help="default, reweighted, gradient, none (without its penalty), as-is (not trained), "
        "NAME=setting:value;…, or a JSON file {NAME: {setting: value}}",
    )
    group.add_argument("--seeds", metavar="N,N…", help="a dense model each (default 0)")
    group.add_argument("--task", help="the task's name, which decides GLUE's metric (the folder's)")
    group.add_argument(
        "--latency-threads", type=int, metavar="N", help="that models are timed on (1)"
    )


def _settings(parser: argparse.ArgumentParser) -> None:
    from spatile.finetune.settings import PRESETS, Settings
    from spatile.sweep.spec import GRID_FIELDS

    group = parser.add_argument_group("settings of finetune", "See spatile finetune --help.")
    group.add_argument("--preset", choices=tuple(PRESETS), help="for a short run; flags win")
    for field in fields(Settings):
        if field.name in GRID_FIELDS:
            continue
        flag, kind = f"--{field.name.replace('_', '-')}", str(field.type)
        about = f"(default {field.default})".replace("%", "%%")
        if kind == "bool":
            action = argparse.BooleanOptionalAction
            group.add_argument(flag, dest=field.name, action=action, help=about)
        elif kind.startswith("tuple"):
            group.add_argument(flag, dest=field.name, nargs="+", help=about)
        else:
            group.add_argument(
                flag, dest=field.name, type=_reader(kind), metavar="VALUE", help=about
            )


def _reader(kind: str) -> Any:
    """What reads a value of a setting that is annotated so."""
    if kind == "str | bool":
        return _precompute
    if kind == "float | str":
        return _number_or_word
    return {"int": int, "float": float}.get(kind.partition(" ")[0], str)


def _precompute(text: str) -> str | bool:
    if text not in PRECOMPUTE:
        raise argparse.ArgumentTypeError(f"{text!r}, expected {', '.join(PRECOMPUTE)}")
    return PRECOMPUTE[text]


def _number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def run(given: argparse.Namespace) -> int:
    """Train, time and print the tables; or make tables of rows that are there."""
    from spatile.finetune.progress import Progress
    from spatile.report.text import table_text
    from spatile.sweep.tables import tables_of

    if hasattr(given, "tables"):
        return _tables(given)
    if given.jobs < 1 or given.timing_rounds < 0 or (given.threads or 1) < 1:
        raise UsageError("sweep: --jobs and --threads are at least 1, --timing-rounds at least 0")
    spec = _spec(given)

    from spatile.sweep.run import resume_command, sweep

    try:
        document = sweep(
            spec,
            given.out,
            resume=given.resume,
            jobs=given.jobs,
            threads=given.threads,
            timing_rounds=given.timing_rounds,
            keep=given.keep,
            dense=given.dense,
            progress=Progress(quiet=given.quiet),
        )
    except KeyboardInterrupt:
        if not (Path(given.out) / "sweep.json").is_file():
            raise
        raise KeyboardInterrupt(
            f"stopped; {resume_command(given.out)} continues the sweep"
        ) from None
    if given.json:
        print(json.dumps(document, ensure_ascii=False, indent=1))
        return 0
    print("\n\n".join(table_text(table) for table in tables_of(document)))
    print(f"\nrows: {given.out}/rows.json, rows.csv; tables and plots: {given.out}/results.md")
    return 0


def _tables(given: argparse.Namespace) -> int:
    from spatile.sweep.document import write_document

    for name in (*_GRID, "preset"):
        if hasattr(given, name):
            raise UsageError(f"sweep: --{name.replace('_', '-')} is given with --tables")
    write_document(given.tables, given.out)
    print(f"tables: {given.out}")
    return 0


def _spec(given: argparse.Namespace) -> Any:
    """The grid that was asked for; None where a sweep is to go on as it was."""
    from spatile.finetune.settings import PRESETS
    from spatile.sweep.folder import SweepFolder
    from spatile.sweep.parsing import read_kept, read_methods, read_seeds, read_sparsities
    from spatile.sweep.spec import Spec

    values = vars(given)
    settings = {
        **PRESETS.get(values.get("preset", ""), {}),
        **{k: v for k, v in values.items() if k not in (*_OWN, *_OWN_TOO)},
    }
    asked = {name: values[name] for name in _GRID if name in values}
    if given.resume and not asked and not settings:
        return None
    before: dict[str, Any] = {}
    if given.resume:
        before = SweepFolder.open(given.out).spec.to_dict()
    if not before and {"keep_tokens", "keep_heads"} & asked.keys():
        asked.setdefault("sparsity", "0")
    for name in ("model", "data", "sparsity"):
        if name not in asked and not before:
            raise UsageError(f"sweep: --{name} is missing")
    wanted: dict[str, Any] = {
        "patterns": ("tile",),
        "methods": {"default": {}},
        "seeds": (0,),
        **before,
        **{n: asked[n] for n in ("model", "data", "task", "latency_threads") if n in asked},
        "settings": {**before.get("settings", {}), **settings},
    }
    for name in ("model", "data"):
        folder = os.path.expanduser(asked.get(name, ""))
        if before and os.path.isdir(folder):
            # The sweep's own relative paths are seen from where it was started.
            wanted[name] = os.path.abspath(folder)
    try:
        if "patterns" in asked:
            wanted["patterns"] = tuple(asked["patterns"].split(","))
        if "sparsity" in asked:
            wanted["sparsities"] = read_sparsities(asked["sparsity"])
        for name in ("keep_tokens", "keep_heads"):
            if name in asked:
                wanted[name] = read_kept(name, asked[name])
        if "methods" in asked:
            wanted["methods"] = read_methods(asked["methods"])
        if "seeds" in asked:
            wanted["seeds"] = read_seeds(asked["seeds"])
        return Spec(**wanted)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
