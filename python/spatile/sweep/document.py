"""Tables and plots of sweeps as a Markdown file."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spatile.finetune.dense_start import DENSE_FIELDS
from spatile.sparsity import write_atomically
from spatile.sweep.plots import plot_names, plots_of
from spatile.sweep.rows import read_rows
from spatile.sweep.spec import spell_settings
from spatile.sweep.tables import duration, markdown, metric_name, tables_of

__all__ = ["render_document", "write_document"]

_INTRODUCTION = """\
# Results

What pruning costs, measured: every table is made from the rows beside it, and these by the command
above it. All models of a seed start from the same dense model, are pruned, and are scored on the
dev rows. Differences are paired: pruned less dense of the same seed, on the same dev rows.
Intervals hold 95 % and come of resampling dev rows and seeds, widened as Student's t asks for so
few seeds; with one seed they know nothing of how seeds differ. A score that is not above the
majority class's says that nothing was learned.
"""


def write_document(rows: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> None:
    """Write the Markdown file ``out`` from files of rows, and each file's plots beside its rows.

    Without matplotlib there are no plots, and the document is the same. Raises ValueError as
    :func:`spatile.sweep.read_rows` and :func:`spatile.sweep.summarize` do, before anything is
    written.
    """
    target = Path(out)
    files = sorted(Path(file) for file in rows)
    text = render_document(files, target)
    for file in files:
        for name, _, svg in _plots(read_rows(file)):
            write_atomically(_plot_file(file, name), svg.encode())
    write_atomically(target, text.encode())


def render_document(files: Sequence[Path], target: Path) -> str:
    """The text of the Markdown file at ``target``, whose links lead to what is beside the rows."""
    parts = [_INTRODUCTION]
    parts += [_section(read_rows(file), file, target) for file in sorted(files)]
    return "\n".join(parts)


def _section(document: Mapping[str, Any], file: Path, target: Path) -> str:
    metric = metric_name(document["metrics"][0])
    dev = len(document["dev"]["labels"])
    link, dense = _link(file, target), _borrowed(document["command"])
    lines = [
        f"## {file.stem if file.stem != 'rows' else document['task']}",
        "",
        f"{metric} on {document['task']}, {document['train_rows']} train rows, {dev} dev rows, "
        f"model {document['model']}, seeds {', '.join(str(s) for s in document['seeds'])}. "
        f"Rows: [{file.name}]({link}).",
        "",
        "```sh",
        document["command"],
        "```",
        "",
        _where(document, borrowed=dense is not None),
        "",
        *(_dense_models(document, dense) if dense is not None else ()),
        *_methods(document["methods"]),
        *(f"{markdown(table)}" for table in tables_of(document)),
    ]
    for name in plot_names(document):
        plot = _plot_file(file, name)
        lines += [f"![{metric} over {name}]({_link(plot, target)})", ""]
    return "\n".join(lines).rstrip() + "\n"


def _where(document: Mapping[str, Any], *, borrowed: bool) -> str:
    machine, dense = document["machine"], document.get("dense_seconds")
    text = f"Took {duration(document['seconds'])}"
    if borrowed:
        text += ", without the dense models of another sweep"
        text += f", whose training took {duration(dense)}, added up over the seeds" if dense else ""
        text += " (without `--dense` this one would train them),"
    if machine:
        text += (
            f" on {machine['processor']}, {machine['cores']} cores, {machine['jobs']} runs at once "
            f"on {machine['threads']} thread{'s' if machine['threads'] > 1 else ''} each; spatile "
            f"{_code(machine)} tier {machine['tier']}, PyTorch {machine['torch']}"
        )
    return text + "."


def _code(machine: Mapping[str, Any]) -> str:
    """The version of spatile, and the commits where rows come from a checkout."""
    version = str(machine["spatile"])
    commits = [code for code in machine.get("code", ()) if code != version]
    return f"{version} ({', '.join(commits)})" if commits else version


def _borrowed(command: str) -> str | None:
    """The sweep whose dense models a command takes."""
    words = shlex.split(command)
    return words[words.index("--dense") + 1] if "--dense" in words else None


def _dense_models(document: Mapping[str, Any], name: str) -> list[str]:
    """What makes the dense models of another sweep."""
    serves = (
        f"`--dense {name}`: the dense models of a sweep with the same `--model`, `--data` and "
        f"settings of the dense stage, and these seeds at least."
    )
    if "settings" not in document:
        return [serves, ""]
    given = shlex.split(document["command"])
    words = ["spatile", "sweep"]
    for flag in ("--model", "--data", "--task"):
        words += given[given.index(flag) :][:2] if flag in given else []
    words += ["--sparsity", "0", "--methods", "as-is"]
    words += ["--seeds", ",".join(map(str, document["seeds"]))]
    words += spell_settings({k: v for k, v in document["settings"].items() if k in DENSE_FIELDS})
    return [
        f"{serves} This one trains them and nothing else:",
        "",
        "```sh",
        shlex.join([*words, "--out", name]),
        "```",
        "",
    ]


def _methods(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    named = [
        f"- {name}: " + ", ".join(f"`{key}` {value}" for key, value in changes.items())
        for name, changes in methods.items()
        if changes
    ]
    return ["Methods change these settings of `spatile finetune`:", "", *named, ""] if named else []


def _plots(document: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    try:
        return plots_of(document)
    except ModuleNotFoundError:
        return []


def _plot_file(file: Path, name: str) -> Path:
    return file.with_name(f"{re.sub(r'[^A-Za-z0-9_.-]', '-', file.stem)}.{name}.svg")


def _link(file: Path, target: Path) -> str:
    return os.path.relpath(file, target.parent).replace(os.sep, "/")
