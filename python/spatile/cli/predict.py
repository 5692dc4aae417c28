"""``spatile predict``: classify texts with a packed model or a checkpoint, without PyTorch."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from spatile.cli.usage import UsageError, add_command, add_schedules, model_folder, schedules_of

__all__ = ["add", "run"]

_EXAMPLES = """\
spatile predict run/packed "It works."
spatile predict run --pairs "When was it built?" "It was finished in 1889."
spatile predict run --file sentences.txt --json
spatile predict run --file sentences.txt --keep-tokens 0.5
cut -f2,3 pairs.tsv | spatile predict run --pairs"""


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command."""
    parser = add_command(commands, "predict", "classify texts or pairs of texts", _EXAMPLES)
    parser.add_argument("model", metavar="MODEL", help="a run, a packed model or a checkpoint")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="default: the lines of --file")
    parser.add_argument(
        "--pairs",
        action="store_true",
        help="texts come by twos; in a file, separated by a tab (known without it for a run)",
    )
    parser.add_argument("--file", metavar="FILE", help="a text per line; default: standard input")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="(default 32)")
    parser.add_argument(
        "--compute",
        choices=("float32", "bfloat16"),
        default="float32",
        help="what products are done in; bfloat16 is up to twice as fast on processors that "
        "multiply it (default float32)",
    )
    add_schedules(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    return parser


def run(given: argparse.Namespace) -> int:
    """Print a line for each input."""
    from spatile.inference import Encoder

    if given.batch_size < 1:
        raise UsageError(f"predict: batch-size is {given.batch_size}, expected at least 1")
    tokens, heads = schedules_of(given, "predict")
    folder = model_folder(given.model)
    paired = given.pairs or _trained_on_pairs(Path(given.model))
    texts, pairs = _inputs(given, paired)
    encoder = Encoder.load(folder, compute=given.compute, tokens=tokens, heads=heads)
    found = encoder.predict(texts, pairs, batch_size=given.batch_size)
    names = _class_names(encoder.config, found.logits.shape[1])
    for i, text in enumerate(texts):
        row: dict[str, Any] = {"text": text}
        if pairs is not None:
            row["pair"] = pairs[i]
        if found.labels is None or found.probabilities is None:
            row["value"] = float(found.logits[i, 0])
            shown = f"{row['value']:.4f}"
        else:
            chances = [float(p) for p in found.probabilities[i]]
            row["label"] = found.labels[i]
            row["probabilities"] = dict(zip(names, chances, strict=True))
            shown = f"{found.labels[i]}\t{max(chances):.3f}"
        if given.json:
            print(json.dumps(row, ensure_ascii=False))
        else:
            print("\t".join([shown, text] + ([] if pairs is None else [pairs[i]])))
    return 0


def _class_names(config: dict[str, Any], count: int) -> list[str]:
    given = config.get("id2label") or {}
    return [str(given.get(str(i), f"LABEL_{i}")) for i in range(count)]


def _trained_on_pairs(path: Path) -> bool:
    report = path / "report.json"
    if not report.is_file():
        return False
    from spatile.report import read_report

    return bool(read_report(report)["data"]["pairs"])


def _inputs(given: argparse.Namespace, paired: bool) -> tuple[list[str], list[str] | None]:
    if given.texts and given.file:
        raise UsageError("predict: both TEXT and --file are given, expected one of them")
    if given.texts:
        if not paired:
            return given.texts, None
        if len(given.texts) % 2:
            raise UsageError(
                f"predict: {len(given.texts)} texts are given, expected an even number: each "
                f"followed by its pair"
            )
        return given.texts[::2], given.texts[1::2]
    source = given.file or "standard input"
    lines = _lines(given.file)
    if not paired:
        return lines, None
    cells = [line.split("\t") for line in lines]
    for number, row in enumerate(cells, start=1):
        if len(row) != 2:
            raise ValueError(
                f"predict: {source} line {number} has {len(row)} columns, expected 2: a text and "
                f"its pair, separated by a tab"
            )
    return [row[0] for row in cells], [row[1] for row in cells]


def _lines(file: str | None) -> list[str]:
    raw = Path(file).read_bytes() if file else sys.stdin.buffer.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"predict: {file or 'standard input'} is not UTF-8 ({error})") from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]
