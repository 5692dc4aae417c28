"""``spatile prune``: one shot, without training."""

from __future__ import annotations

import argparse
import json
from typing import Any

from spatile.cli.usage import PRECOMPUTE, UsageError, add_command, refuse_beside_plan
from spatile.sparsity.saliency import SECOND_ORDER

__all__ = ["add", "run"]

_EXAMPLES = """\
spatile prune --model ./classifier --sparsity 0.3 --out small
spatile prune --model run/stages/dense --sparsity 0.5 --calibration texts.txt --out small
spatile prune --model run/stages/dense --sparsity 0.5 --pattern row --data ./mrpc --out small
spatile prune --model ./classifier --sparsity 0 --heads 0.5 --neurons 0.75 \\
  --calibration ./texts.txt --out small"""


_OF_CALIBRATION = ("saliency", "calibration_rows", "damping", "max_length")


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
        type=float,
        metavar="S",
        help="0 ≤ S < 1, of the groups: where matrices differ in size and are ranked together, "
        "rows, columns and heads of the larger ones weigh more",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="for the packed model; new")
    parser.add_argument("--pattern", help="as in finetune (default tile)")
    parser.add_argument("--precompute", choices=tuple(PRECOMPUTE), help="as in finetune (off)")
    for what in ("heads", "neurons", "layers"):
        parser.add_argument(
            f"--{what}",
            type=float,
            metavar="SHARE",
            help=f"of {what} to take away whole, before (needs --calibration)",
        )
    parser.add_argument(
        "--plan", metavar="FILE", help="a saved plan, instead of --sparsity and --pattern"
    )
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
        "--calibration-rows", type=int, metavar="N", help="of --calibration: texts to draw (512)"
    )
    parser.add_argument("--damping", type=float, help="of --calibration: of its inverse (0.01)")
    parser.add_argument(
        "--max-length", type=int, metavar="TOKENS", help="of --calibration: cut its texts (128)"
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
    from spatile.finetune.one_shot import check_scorable, prune_checkpoint, scores_of_encoder
    from spatile.sparsity import Plan

    _check_belongs(given)
    task = None
    if given.data is not None:
        task = load_task(given.data, dev_ids=given.dev_ids, overlap=given.overlap)
        check_scorable(given.model, task)
    plan = None if given.plan is None else Plan.load(given.plan)
    calibration = None
    if given.calibration is not None:
        from spatile.finetune.on_texts import read_texts

        calibration = read_texts(given.calibration, dev_ids=given.dev_ids, overlap=given.overlap)
    dense, packed = prune_checkpoint(
        given.model,
        given.out,
        sparsity=0.0 if given.sparsity is None else given.sparsity,
        pattern=given.pattern or "tile",
        precompute=PRECOMPUTE[given.precompute or "off"],
        heads=given.heads,
        neurons=given.neurons,
        layers=given.layers,
        plan=plan,
        scope=given.scope,
        calibration=calibration,
        **{n: getattr(given, n) for n in _OF_CALIBRATION if getattr(given, n) is not None},
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


def _check_belongs(given: argparse.Namespace) -> None:
    """Raise UsageError for options without what they belong to."""
    if given.plan is not None:
        refuse_beside_plan("prune", vars(given), ("sparsity", "pattern", "precompute"))
    elif given.sparsity is None:
        raise UsageError("prune: --sparsity is missing, expected it or --plan")
    belong: dict[str, tuple[str, ...]] = dict.fromkeys(_OF_CALIBRATION, ("calibration",))
    belong |= dict.fromkeys(("dev_ids", "overlap"), ("data", "calibration"))
    for name, owners in belong.items():
        if getattr(given, name) is not None and all(getattr(given, o) is None for o in owners):
            wanted = " or ".join(f"--{owner}" for owner in owners)
            flag = name.replace("_", "-")
            raise UsageError(f"prune: --{flag} is given without {wanted}, to which it belongs")
