"""``spatile prune``: one shot, without training."""

from __future__ import annotations

import argparse
import json
from typing import Any

from spatile.cli.usage import PRECOMPUTE, add_command
from spatile.sparsity.saliency import SECOND_ORDER

__all__ = ["add", "run"]

_EXAMPLES = """\
spatile prune --model ./classifier --sparsity 0.3 --out small
spatile prune --model run/stages/dense --sparsity 0.5 --calibration texts.txt --out small
spatile prune --model run/stages/dense --sparsity 0.5 --pattern row --data ./mrpc --out small
spatile prune --model ./classifier --sparsity 0 --heads 0.5 --neurons 0.75 \\
  --calibration ./texts.txt --out small"""


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command."""
    parser = add_command(
        commands,
        "prune",
        "prune a checkpoint in one shot, without training, and pack it",
        _EXAMPLES,
    )
    parser.add_argument("--model", required=True, metavar="DIR|NAME", help="checkpoint or minilm")
    parser.add_argument(
        "--sparsity",
        required=True,
        type=float,
        metavar="S",
        help="0 ≤ S < 1, of the groups: where matrices differ in size and are ranked together, "
        "rows, columns and heads of the larger ones weigh more",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="for the packed model; new")
    parser.add_argument("--pattern", default="tile", help="as in finetune (default tile)")
    parser.add_argument("--precompute", choices=tuple(PRECOMPUTE), default="off")
    for what in ("heads", "neurons", "layers"):
        parser.add_argument(
            f"--{what}",
            type=float,
            metavar="SHARE",
            help=f"of {what} to take away whole, before (needs --calibration)",
        )
    parser.add_argument("--plan", metavar="FILE", help="a saved plan, instead of --pattern")
    parser.add_argument(
        "--scope",
        choices=("matrix", "global", "row-balanced"),
        help="what is ranked together (default global with --calibration, else matrix)",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE|DIR|NAME",
        help="texts, one a line, or a data set's: prune so that the model's output on them "
        "changes least, and have what is kept make up for the rest (without it: by norm)",
    )
    parser.add_argument(
        "--saliency",
        choices=SECOND_ORDER,
        help="of --calibration: what the model's output would lose (second-order, the default), "
        "or each matrix's own (reconstruction)",
    )
    parser.add_argument(
        "--calibration-rows", type=int, default=512, metavar="N", help="texts to draw (512)"
    )
    parser.add_argument("--damping", type=float, default=0.01, help="of its inverse (0.01)")
    parser.add_argument(
        "--max-length", type=int, default=128, metavar="TOKENS", help="cut those texts (128)"
    )
    parser.add_argument(
        "--data", metavar="DIR|NAME", help="score on its dev split, before and after"
    )
    parser.add_argument("--dev-ids", metavar="FILE", help="as in finetune")
    parser.add_argument("--overlap", choices=("error", "drop"), help="as in finetune")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def run(given: argparse.Namespace) -> int:
    """Prune, pack, print what became of it."""
    from spatile.finetune.data import load_task
    from spatile.finetune.one_shot import prune_checkpoint, scores_of_encoder
    from spatile.sparsity import Plan

    task = None
    if given.data is not None:
        task = load_task(given.data, dev_ids=given.dev_ids, overlap=given.overlap)
    plan = None if given.plan is None else Plan.load(given.plan)
    calibration = None
    if given.calibration is not None:
        from spatile.finetune.on_texts import read_texts

        calibration = read_texts(given.calibration, dev_ids=given.dev_ids, overlap=given.overlap)
    dense, packed = prune_checkpoint(
        given.model,
        given.out,
        sparsity=given.sparsity,
        pattern=given.pattern,
        precompute=PRECOMPUTE[given.precompute],
        heads=given.heads,
        neurons=given.neurons,
        layers=given.layers,
        plan=plan,
        scope=given.scope,
        saliency=given.saliency,
        calibration=calibration,
        calibration_rows=given.calibration_rows,
        damping=given.damping,
        max_length=given.max_length,
    )
    scores = {}
    if task is not None:
        scores = {
            name: scores_of_encoder(encoder, task)
            for name, encoder in (("dense", dense), ("pruned", packed))
        }
    if given.json:
        shown = {
            "summary": packed.summary().to_json(),
            "scores": {n: {k: s.to_json() for k, s in v.items()} for n, v in scores.items()},
        }
        print(json.dumps(shown, indent=1, ensure_ascii=False))
        return 0
    print(packed.summary())
    for name, found in scores.items():
        print(f"{name}: " + ", ".join(str(score) for score in found.values()))
    print(f"packed model: {given.out}")
    return 0
