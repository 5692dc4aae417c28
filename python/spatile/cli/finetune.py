"""``spatile finetune``: the main job."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from spatile.cli import target_loss
from spatile.cli.usage import PRECOMPUTE, UsageError, add_command, refuse_beside_plan
from spatile.sparsity.saliency import SALIENCIES

__all__ = ["add", "run"]

_EXAMPLES = """\
spatile finetune --model minilm --data data/qa --sparsity 0.5 --out run
spatile finetune --model ./bert --data ./mrpc --sparsity 0.8 --pattern attention-aware --out run
spatile finetune --model ./bert --data ./msr --dev-ids ./msr/dev_ids.tsv --sparsity 0.5 --out run
spatile finetune --model minilm --data data/qa --target-loss 1.0 --out run
spatile finetune --model minilm --data data/qa --sparsity 0.5 --keep-tokens 0.5 --out run
spatile finetune --model ./bert --data ./sst2 --keep-tokens 0.5 --keep-heads 0.75 --out run
spatile finetune --resume --out run"""

_OWN = (
    *("run", "debug", "out", "resume", "json", "quiet", "threads", "timing_rounds", "preset"),
    "target_loss",
)


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command."""
    parser = add_command(
        commands, "finetune", "fine-tune, prune by groups, retrain, pack and report", _EXAMPLES
    )
    # Settings that are not given must not overrule a preset's or a resumed run's.
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument(
        "--out", required=True, metavar="RUN", help="the run's folder, new or empty"
    )
    parser.add_argument(
        "--resume", action="store_true", default=False, help="continue the run in --out"
    )
    parser.add_argument(
        "--json", action="store_true", default=False, help="print the report as JSON"
    )
    parser.add_argument("--quiet", action="store_true", default=False, help="show no progress")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch and spatile")
    parser.add_argument(
        "--timing-rounds",
        type=int,
        default=5,
        metavar="N",
        help="passes of the timing at the end (default 5; 0: none)",
    )
    _model_and_data(parser)
    _pruning(parser)
    _training(parser)
    return parser


def _model_and_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and data")
    group.add_argument(
        "--model", metavar="DIR|NAME", help="a checkpoint's folder, a hub name, or minilm"
    )
    group.add_argument("--data", metavar="DIR|NAME", help="train and dev as TSV or JSON lines")
    group.add_argument("--train-rows", type=int, metavar="N", help="use a random N of train")
    group.add_argument("--dev-rows", type=int, metavar="N", help="use a random N of dev")
    group.add_argument("--max-length", type=int, metavar="TOKENS", help="cut inputs (128)")
    group.add_argument("--dev-ids", metavar="FILE", help="GLUE's list of MSR rows that are dev")
    group.add_argument(
        "--overlap", choices=("error", "drop"), help="rows in both train and dev: stop, or drop"
    )
    for name in ("text", "pair", "label"):
        group.add_argument(f"--{name}", metavar="COLUMN", help=f"the column of the {name}")
    group.add_argument("--kind", choices=("classification", "regression"), help="of the task")
    group.add_argument("--labels", nargs="+", metavar="CLASS", help="the classes, in order")
    group.add_argument("--positive", metavar="CLASS", help="the class that F1 is about")


def _pruning(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pruning")
    group.add_argument(
        "--sparsity",
        type=float,
        metavar="S",
        help="fraction of the pattern's groups to prune; of the weights about as much, but where "
        "groups of unequal size compete (row, column) the report says what is gone",
    )
    group.add_argument(
        "--target-loss",
        type=float,
        metavar="POINTS",
        help="instead of --sparsity: search for the highest that costs no more of GLUE's metric",
    )
    group.add_argument(
        "--pattern",
        help="tile (default), tile:RxC, row, column, element, head:W, attention-aware, or "
        "structure (whole neurons and heads)",
    )
    group.add_argument(
        "--precompute",
        choices=tuple(PRECOMPUTE),
        help="attention-aware: merge W_V and W_O (off)",
    )
    for what in ("heads", "neurons", "layers"):
        group.add_argument(
            f"--{what}", type=float, metavar="SHARE", help=f"of {what} to take away whole (none)"
        )
    for what in ("tokens", "heads"):
        group.add_argument(
            f"--keep-{what}",
            type=float,
            metavar="K",
            help=f"of each input's {what}, averaged over the layers: the least important go, by "
            f"and by in the retrain stage (all); --sparsity may then be left out",
        )
    group.add_argument(
        "--plan", metavar="FILE", help="a saved plan, instead of --sparsity and --pattern"
    )
    group.add_argument(
        "--scope",
        choices=("auto", "matrix", "global", "row-balanced"),
        help="what is ranked together (auto: all matrices; each alone where groups go by norm)",
    )
    group.add_argument(
        "--saliency",
        choices=("auto", *SALIENCIES),
        help="what goes first: by norm, gradients, or what the output misses least (auto)",
    )
    group.add_argument(
        "--calibration-rows",
        type=int,
        metavar="N",
        help="training rows that second-order and reconstruction look at, without labels (25,000 "
        "tokens')",
    )
    group.add_argument("--damping", type=float, help="of their inverse (0.01)")
    group.add_argument("--prunings", type=int, metavar="N", help="prune in N steps (2)")
    group.add_argument(
        "--gradual",
        type=float,
        metavar="SHARE",
        help="of the retrain stage, over which the prunings are spread (1/3)",
    )
    group.add_argument("--method", choices=("proximal", "gradient"), help="of the lasso (proximal)")
    group.add_argument("--strength", help="λ of the lasso, or auto (default)")
    group.add_argument("--shrink", type=float, help="how far auto may shrink the weakest (0.5)")
    group.add_argument("--eps", type=float, help="ε of the reweighting (1e-3)")
    group.add_argument(
        "--twin",
        action="store_true",
        help="train the reweighted stage without the penalty too, for the report to compare with",
    )
    group.add_argument("--ramp", type=float, help="share of the stage over which λ rises (0.5)")
    group.add_argument("--reweight-every", type=float, metavar="EPOCHS", help="β's milestones")


def _training(parser: argparse.ArgumentParser) -> None:
    from spatile.finetune.settings import RETRAIN_LR

    group = parser.add_argument_group("training")
    group.add_argument("--preset", choices=("demo",), help="settings for a short run; flags win")
    for stage, default in (("dense", 3), ("reweighted", 0), ("retrain", 3)):
        group.add_argument(
            f"--epochs-{stage}", type=float, metavar="N", help=f"epochs of that stage ({default})"
        )
    group.add_argument("--batch-size", type=int, metavar="N", help="rows per step (16)")
    group.add_argument("--eval-batch-size", type=int, metavar="N", help="on dev (64)")
    group.add_argument("--lr", type=float, help="learning rate, falling linearly (5e-5)")
    for stage in ("dense", "reweighted", "retrain"):
        own = f" ({RETRAIN_LR:g} · lr)" if stage == "retrain" else ""
        group.add_argument(f"--lr-{stage}", type=float, metavar="LR", help=f"{stage}'s own{own}")
    group.add_argument("--warmup", type=float, help="share of a stage with rising rate (0.1)")
    group.add_argument("--weight-decay", type=float, help="AdamW's (0.01)")
    group.add_argument(
        "--distill",
        type=float,
        nargs="?",
        const=0.5,
        metavar="WEIGHT",
        help="of the run's own dense stage's logits against the labels (0.5)",
    )
    group.add_argument(
        "--distill-hidden", type=float, metavar="WEIGHT", help="of its hidden states (1)"
    )
    group.add_argument(
        "--distill-attention", type=float, metavar="WEIGHT", help="of its attention (0)"
    )
    group.add_argument(
        "--attention",
        choices=("auto", "spatile", "sdpa", "eager"),
        help="while training (auto: spatile's where the model takes it, else sdpa)",
    )
    group.add_argument(
        "--linear",
        choices=("auto", "spatile", "torch"),
        help="matrix products while training (auto: spatile's where a trial finds them faster)",
    )
    group.add_argument(
        "--no-sparse",
        dest="sparse",
        action="store_false",
        help="retrain with the pruned weights as zeros instead of skipping them",
    )
    group.add_argument("--bf16", action="store_true", help="train under bfloat16 autocast")
    group.add_argument("--seed", type=int, help="of everything random (0)")
    group.add_argument(
        "--checkpoint-every", type=int, metavar="STEPS", help="to resume from (one epoch)"
    )


def run(given: argparse.Namespace) -> int:
    """Run the pipeline and print its report."""
    from spatile.finetune.progress import Progress
    from spatile.finetune.run_folder import RunFolder
    from spatile.finetune.settings import PRESETS, Settings
    from spatile.report import render_text
    from spatile.sparsity import Plan

    settings = _explicit(given)
    if target_loss.wanted(given):
        return target_loss.run(given, settings)
    if given.resume:
        saved = RunFolder.open(given.out).settings.to_dict()
        settings = {**saved, **settings}
    else:
        settings = {**PRESETS.get(getattr(given, "preset", ""), {}), **settings}
        if "plan" in settings:
            refuse_beside_plan("finetune", settings, ("sparsity", "pattern", "precompute"))
        if any(name in settings for name in ("plan", "keep_tokens", "keep_heads")):
            settings.setdefault("sparsity", 0.0)
        for name in ("model", "data", "sparsity"):
            if name not in settings:
                raise UsageError(f"finetune: --{name} is missing")
    plan = None if settings.get("plan") is None else Plan.from_dict(settings["plan"])
    try:
        Settings(**settings)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    settings.pop("plan", None)

    from spatile.finetune.memory import keep_freed_memory
    from spatile.finetune.pipeline import finetune

    keep_freed_memory()
    try:
        report = finetune(
            **settings,
            plan=plan,
            out=given.out,
            resume=given.resume,
            threads=given.threads,
            timing_rounds=given.timing_rounds,
            progress=Progress(quiet=given.quiet),
        )
    except KeyboardInterrupt:
        if not (Path(given.out) / "run.json").is_file():
            raise
        again = f"spatile finetune --resume --out {given.out}"
        raise KeyboardInterrupt(f"stopped; {again} continues the run") from None
    if given.json:
        print(json.dumps(report, ensure_ascii=False, indent=1))
    else:
        print(render_text(report), end="")
        print(f"\nreport: {given.out}/report.html; packed model: {given.out}/packed")
    return 0


def _explicit(given: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given on the command line."""
    from spatile.sparsity import Plan

    settings = {k: v for k, v in vars(given).items() if k not in _OWN}
    if "precompute" in settings:
        settings["precompute"] = PRECOMPUTE[settings["precompute"]]
    if settings.get("strength", "auto") != "auto":
        try:
            settings["strength"] = float(settings["strength"])
        except ValueError:
            raise UsageError(
                f"finetune: strength is {settings['strength']!r}, expected 'auto' or a number"
            ) from None
    if "plan" in settings:
        settings["plan"] = Plan.load(settings["plan"]).to_dict()
    return settings
