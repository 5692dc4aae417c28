"""`spatile bench`: what it writes, whom it compares, and that nothing wrong is ever timed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spatile as sp
from spatile.benchmarks import NAMES, console, encoder, models, runner, timing
from spatile.benchmarks.cases import AVX512, Case, Peer, Target, WrongAnswerError
from spatile.benchmarks.exported import Exported
from spatile.benchmarks.runner import Bench, Options
from spatile.benchmarks.table import Row, with_target
from spatile.benchmarks.timing import Estimate, Timing, interleave
from spatile.cli import main

Capture = pytest.CaptureFixture[str]

KEYS = ["case", "shape", "dtype", "tier", "threads", "ours_ms", "peer", "peer_ms", "ratio"]
KEYS += ["target", "met", "interval"]
NATIVE = sp.info()["cpu"]["tier"] in ("avx512_bf16", "amx_bf16")


@pytest.fixture(autouse=True)
def _small_models_and_a_cache_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    small = {
        "hidden_size": 32,
        "num_hidden_layers": 4,  # what a schedule needs to keep a third
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    for name, value in small.items():
        monkeypatch.setitem(models.MINILM, name, value)
    monkeypatch.setattr(models, "find_spec", lambda name: None)  # no weights of a larger one
    base = tmp_path_factory.getbasetemp() / "bench-cache"
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(variable, str(base))


def measured(file: Path, *arguments: str) -> list[dict[str, Any]]:
    """The rows of a run that takes no longer than it must."""
    common = ["--seconds", "0", "--threads", "1", "--json", str(file)]
    assert main(["bench", *arguments, *common]) == 0
    rows: list[dict[str, Any]] = json.loads(file.read_text("utf-8"))
    return rows


# ---- the rows


@pytest.mark.parametrize(
    ("name", "only", "cases"),
    [
        ("linear", "128 rows, 384 to 1536, float32", 7),
        ("attention", "1 x 32 tokens", 2),
        ("attention-backward", "1 x 32 tokens", 1),
        ("encoder", "MiniLM-L6, dense, 1 x 32 tokens, float32", 1),
        ("tokens", "topk, half of, 1024 scores", 1),
        ("tokens", "MiniLM-L6, 80% of tiles pruned, keep 0.5, 8 x 128 tokens, float32", 1),
        ("tokens", "importance sums, 12 heads of 64, 1 x 128 tokens, float32", 1),
        ("tokens", "MiniLM-L6, dense, keep 1, 1 x 128 tokens, float32", 1),
        ("regularizer", "tiles, float32", 6),
        ("regularizer", "proximal", 1),
        ("train-step", "in turns, 128 rows", 1),
        ("train-step", "pruned, MiniLM-L6, 16 x 64 tokens, float32", 1),
        ("second-order", "half of all tiles, MiniLM-L6", 1),
    ],
)
def test_every_name_writes_its_rows(name: str, only: str, cases: int, tmp_path: Path) -> None:
    rows = measured(tmp_path / "rows.json", name, "--only", only)
    assert len({(row["case"], row["shape"]) for row in rows if row["dtype"] == "float32"}) == cases
    for row in rows:
        assert list(row) == KEYS
        assert only in f"{row['case']}, {row['shape']}, {row['dtype']}"
        assert (row["tier"], row["threads"]) == (sp.info()["cpu"]["tier"], 1)
        assert row["ours_ms"] > 0
        assert row["peer_ms"] > 0
        assert row["ratio"] > 0
        if row["target"] is None:
            assert row["met"] is None
        elif row["met"] is not None:
            assert row["met"] == (row["ratio"] >= row["target"])
        else:
            assert row["interval"]


def test_rows_of_bfloat16_are_those_of_a_tier_that_has_it(tmp_path: Path, capsys: Capture) -> None:
    rows = measured(tmp_path / "rows.json", "linear", "--only", "dense, 128 rows, 384 to 1536")
    dtypes, out = {row["dtype"] for row in rows}, capsys.readouterr().out
    if not NATIVE:
        assert "no bfloat16 products" in out
    assert (dtypes == {"float32"}) == (not NATIVE or "bfloat16: not supported" in out)


def test_a_forced_tier_is_what_its_rows_say(tmp_path: Path) -> None:
    before = sp.info()["cpu"]["tier"]
    rows = measured(
        tmp_path / "rows.json", "linear", "--only", "384 to 1536, float32", "--tier", "scalar"
    )
    assert {row["tier"] for row in rows} == {"scalar"}
    # Targets for AVX-512 say nothing about it; that pruning must not cost time holds everywhere.
    aimed = {row["case"] for row in rows if row["target"] is not None}
    assert aimed == {f"linear, 80% of {p}s pruned" for p in ("row", "column", "element")}
    assert sp.info()["cpu"]["tier"] == before


def test_the_threads_asked_for_are_used_and_given_back(tmp_path: Path) -> None:
    import torch

    before = sp.num_threads(), torch.get_num_threads()
    file = tmp_path / "rows.json"
    only = "80% of tiles pruned, 128 rows, 384 to 1536, float32"
    code = main(["bench", "linear", "--seconds=0", "--only", only, "--json", str(file),
                 "--threads", "1", "2"])  # fmt: skip
    assert code == 0
    rows = json.loads(file.read_text("utf-8"))
    assert [row["threads"] for row in rows if row["peer"] == "torch"] == [1, 2]
    assert (sp.num_threads(), torch.get_num_threads()) == before


def test_a_wrong_name_is_refused_with_the_list(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "lineal"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert all(name in error for name in (*NAMES, "all"))


# ---- peers


def test_the_encoders_peers_are_all_that_are_installed(tmp_path: Path, capsys: Capture) -> None:
    only = "MiniLM-L6, 80% of tiles pruned, 8 MRPC pairs, float32"
    rows = measured(tmp_path / "rows.json", "encoder", "--only", only)
    peers, out = {row["peer"] for row in rows}, capsys.readouterr().out
    assert {"torch", "torch bfloat16"} <= peers
    assert ({"onnxruntime", "onnxruntime int8"} <= peers) != ("onnxruntime: absent" in out)
    assert ({"openvino f32", "openvino bf16"} <= peers) != ("openvino: absent" in out)


def test_an_absent_peer_is_named_and_the_others_measured(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    only = "MiniLM-L6, dense, 1 x 32 tokens, float32"
    rows = measured(tmp_path / "rows.json", "encoder", "--only", only)
    out = capsys.readouterr().out
    assert {row["peer"] for row in rows} == {"torch", "torch bfloat16"}
    assert "onnxruntime: absent" in out
    assert "openvino: absent" in out


def test_without_torch_what_needs_none_is_measured(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    only = "128 rows, 384 to 1536, float32"
    rows = measured(tmp_path / "rows.json", "linear", "encoder", "--only", only)
    assert {row["peer"] for row in rows} == {"spatile dense"}
    assert "torch: absent" in capsys.readouterr().out
    assert measured(tmp_path / "rows.json", "encoder", "--only", "MiniLM-L6, dense") == []
    assert "encoder: needs" in capsys.readouterr().out


def test_peers_that_were_not_asked_for_are_not_measured(tmp_path: Path) -> None:
    only = "MiniLM-L6, dense, 1 x 32 tokens, float32"
    rows = measured(tmp_path / "rows.json", "encoder", "--only", only, "--peers", "torch")
    assert {row["peer"] for row in rows} == {"torch", "torch bfloat16"}


def test_an_exported_model_is_made_once_and_never_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = models.bert("MiniLM-L6")
    first = Exported("small", model).plain()
    written = first.stat().st_mtime_ns

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    import torch

    monkeypatch.setattr(torch.onnx, "export", fail)
    again = Exported("small", model).plain()
    assert (again, again.stat().st_mtime_ns) == (first, written)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[5] += 1
    other = Exported("small", model)  # other weights, another file
    with pytest.raises(OSError, match="No space"):
        other.plain()
    assert list(first.parent.iterdir()) == [first]


# ---- targets


def row(peer: str, ratio: float, tier: str = "avx512") -> Row:
    return Row("c", "s", "float32", tier, 1, 1.0, peer, ratio, ratio)


def aimed(target: Target, tier: str = "avx512") -> dict[str, tuple[float | None, bool | None]]:
    rows = [row("fast", 3.9, tier), row("slow", 8.0, tier), row("int8", 1.5, tier)]
    found = with_target(rows, ["float32", "float32", "int8"], target)
    assert [r.peer for r in found] == ["fast", "slow", "int8"]
    return {r.peer: (r.target, r.met) for r in found if r.target is not None}


def test_the_target_is_the_best_peers_of_the_precision_that_it_names() -> None:
    assert aimed(Target(4.0, "float32")) == {"fast": (4.0, False)}
    assert aimed(Target(3.9, "float32")) == {"fast": (3.9, True)}
    assert aimed(Target(1.5)) == {"int8": (1.5, True)}
    assert aimed(Target(2.0)) == {"int8": (2.0, False)}
    assert aimed(Target(2.0, "bfloat16")) == {}


def test_a_target_holds_on_the_tiers_that_it_names() -> None:
    assert aimed(Target(1.0, "float32", AVX512), "amx_bf16") == {"fast": (1.0, True)}
    assert aimed(Target(1.0, "float32", AVX512), "avx2") == {}


def test_at_most_targets_are_limit_over_value(capsys: Capture) -> None:
    bench, time = Bench(Options(threads=(1,))), Timing.of([[1.0]])
    kept = [
        bench.keep_at_most(("c", "s", "float32"), found, 0.03, ours=time, peer="p", theirs=time)
        for found in (Estimate.of([value]) for value in (0.01, 0.03, 0.06, -0.01))
    ]
    assert [r.ratio for r in kept] == [3.0, 1.0, 0.5, 100.0]
    assert [r.met for r in kept] == [True, True, False, True]
    assert {r.target for r in kept} == {1.0}
    assert bench.rows == kept
    assert "missed" in capsys.readouterr().out


def test_a_target_within_the_noise_is_open(capsys: Capture) -> None:
    bench, time, title = Bench(Options(threads=(1,))), Timing.of([[1.0]]), ("c", "s", "float32")
    noisy = Estimate(0.9, 0.7, 1.1)
    sides: dict[str, Any] = {"ours": time, "peer": "p", "theirs": time}
    kept = [
        bench.keep_at_most(title, noisy, 1.0, **sides),
        bench.keep_at_least(title, noisy, 1.0, note="", **sides),
        bench.keep_at_most(title, noisy, 1.2, **sides),
        bench.keep_at_least(title, noisy, 1.2, note="", **sides),
    ]
    assert [row.met for row in kept] == [None, None, True, False]
    assert kept[0].interval == (0.7, 1.1)
    assert "target 1: open" in capsys.readouterr().out
    assert next(iter(console.summary(kept))).endswith("1 met, 1 missed, 2 open")


# ---- checking and timing


def one_case(run: Callable[[], Any], expected: Any = 1.0, name: str = "c") -> Case:
    return Case(name, "s", "float32", run, np.full(3, expected), 1e-6, Target(1.0, "float32"))


def one_peer(run: Callable[[], Any]) -> Peer:
    return Peer("p", "float32", run, np.ones(3), 1e-6)


@pytest.mark.parametrize(
    "wrong", [np.zeros(3), np.ones(4), np.full(3, np.nan)], ids=["value", "shape", "nan"]
)
@pytest.mark.parametrize("side", ["ours", "peer"])
def test_a_wrong_answer_is_never_timed(
    side: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "interleave", lambda *_, **__: pytest.fail("it was timed"))
    bench = Bench(Options(threads=(1,), seconds=0.0))
    ours = one_case(lambda: wrong if side == "ours" else np.ones(3))
    peer = one_peer(lambda: wrong if side == "peer" else np.ones(3))
    with pytest.raises(WrongAnswerError):
        bench.compare([ours], [peer])
    assert not bench.rows


def test_what_is_not_supported_is_left_out_with_its_reason(capsys: Capture) -> None:
    def unsupported() -> None:
        raise NotImplementedError("linear: compute is 'bfloat16'")

    bench = Bench(Options(threads=(1,), seconds=0.0))
    cases = [one_case(unsupported, name="never"), one_case(lambda: np.ones(3))]
    found = bench.compare(cases, [one_peer(lambda: np.ones(3))])
    assert [r.case for r in found] == ["c"]
    assert "never, s, float32: not supported: linear: compute" in capsys.readouterr().out


def test_sides_of_one_group_are_counted_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least of three against one run would favour the short side by their noise."""
    monkeypatch.setattr(timing, "_clock", lambda side: side())
    noise = iter(range(1, 1000))
    short, long = interleave([lambda: 1e-5 * next(noise), lambda: 0.2], seconds=0.0)
    assert len(short.turns) == len(long.turns)
    assert short.median == pytest.approx(float(np.median(short.turns)))


def test_sides_take_turns() -> None:
    calls: list[str] = []
    sides = [lambda name=name: calls.append(name) for name in "abc"]
    timings = interleave(sides, seconds=0.0)
    turns = [side for i, side in enumerate(calls) if i == 0 or calls[i - 1] != side]
    assert {turns.count(name) for name in "abc"} <= {4, 5}
    assert len(timings) == 3
    assert all(t.minimum <= t.median for t in timings)


@pytest.fixture
def _stopped_at_the_second_comparison(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    done = []

    def stop(sides: Any, **options: Any) -> list[Timing]:
        if done:
            raise KeyboardInterrupt
        done.append(True)
        return interleave(sides, **options)

    monkeypatch.setattr(runner, "interleave", stop)
    return


@pytest.mark.usefixtures("_stopped_at_the_second_comparison")
def test_an_interrupted_run_leaves_what_it_measured(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "rows.json"
    file.write_text("of another run", "utf-8")
    before = sp.num_threads()
    code = main(["bench", "linear", "--seconds=0", "--threads=1", "--only=rows, 768 to 768",
                 "--json", str(file)])  # fmt: skip
    assert code == 130
    rows = json.loads(file.read_text("utf-8"))
    assert {r["shape"] for r in rows} == {"128 rows, 768 to 768"}
    assert len({r["case"] for r in rows}) == 4
    assert list(tmp_path.iterdir()) == [file]
    assert sp.num_threads() == before


def test_the_summary_names_what_was_met_and_missed(capsys: Capture) -> None:
    from dataclasses import replace

    from spatile.benchmarks.console import summary

    rows = [row("x", 2.0), replace(row("y", 3.0), target=2.0, met=True)]
    rows.append(replace(row("z", 0.5), target=1.0, met=False))
    first, met, missed = summary(rows)
    assert first == "3 rows, 2 of them with a target: 1 met, 1 missed, 0 open"
    assert met.split()[0] == "met"
    assert "3 of 2" in met
    assert missed.split()[0] == "missed"
    assert "0.5 of 1" in missed


def test_batches_are_the_same_tokens_packed_and_padded() -> None:
    batch = models.Batch((3, 5))
    padded = batch.padded
    assert padded["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert batch.packed(padded["input_ids"][..., None])[:, 0].tolist() == [
        token for ids in batch.ids for token in ids
    ]
    assert encoder.BATCHES["8 MRPC pairs"] == models.MRPC_LENGTHS[:8]
