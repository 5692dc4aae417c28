"""``spatile finetune --target-loss``: the sparsity is searched for."""

from __future__ import annotations

import argparse
import json
from typing import Any

from spatile.cli.usage import UsageError

__all__ = ["run", "wanted"]


def wanted(given: argparse.Namespace) -> bool:
    """Whether a search is asked for, or the folder to resume holds one."""
    from spatile.finetune.target_loss import Search

    return hasattr(given, "target_loss") or (given.resume and Search.is_in(given.out))


def run(given: argparse.Namespace, settings: dict[str, Any]) -> int:
    """Search, and print the path and the result."""
    from spatile.finetune.memory import keep_freed_memory
    from spatile.finetune.progress import Progress
    from spatile.finetune.settings import PRESETS, Settings
    from spatile.finetune.target_loss import (
        RESOLUTION,
        Search,
        check_target_loss,
        search_sparsity,
        summary_lines,
    )

    for name in ("sparsity", "plan"):
        if name in settings:
            raise UsageError(
                f"finetune: --{name} is given with --target-loss, expected one of them"
            )
    if given.resume:
        before = Search.open(given.out)
        settings = {**before.settings.to_dict(), **settings}
        del settings["sparsity"], settings["plan"]
        target = getattr(given, "target_loss", before.state["target_loss"])
        resolution = before.state["resolution"]
    else:
        resolution = RESOLUTION
        target = given.target_loss
        settings = {**PRESETS.get(getattr(given, "preset", ""), {}), **settings}
        for name in ("model", "data"):
            if name not in settings:
                raise UsageError(f"finetune: --{name} is missing")
    try:
        check_target_loss(target)
        Settings(**settings, sparsity=0.0)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    keep_freed_memory()
    try:
        found = search_sparsity(
            **settings,
            target_loss=target,
            resolution=resolution,
            out=given.out,
            resume=given.resume,
            threads=given.threads,
            timing_rounds=given.timing_rounds,
            progress=Progress(quiet=given.quiet),
        )
    except KeyboardInterrupt:
        if not Search.is_in(given.out):
            raise
        again = f"spatile finetune --resume --out {given.out}"
        raise KeyboardInterrupt(f"stopped; {again} continues the search") from None
    if given.json:
        print(json.dumps(found, ensure_ascii=False, indent=1))
    else:
        print("\n".join(summary_lines(found)))
        if found["result"] is not None:
            print(f"\nreport: {given.out}/best/report.html; packed model: {given.out}/best/packed")
    return 0 if found["result"] is not None else 1
