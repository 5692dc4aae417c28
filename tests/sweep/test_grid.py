"""What a grid may be asked to be, how it is spelled, and how it may grow."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from spatile.cli import main
from spatile.cli import sweep as command
from spatile.sweep import Cell, Spec
from spatile.sweep.configuration import Configuration
from spatile.sweep.parsing import METHODS, read_kept, read_methods, read_seeds, read_sparsities


def make(model: Path, **changes: Any) -> Spec:
    given: dict[str, Any] = {
        "model": str(model),
        "data": "data",
        "patterns": ("tile",),
        "sparsities": (0.5,),
        "methods": {"default": {}},
        "seeds": (0,),
    }
    return Spec(**{**given, **changes})


# ---- spelling


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5", (0.5,)),
        ("0.3,0.5", (0.3, 0.5)),
        ("0.3:0.9:0.1", (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
        ("0.1,0.5:0.8:0.2", (0.1, 0.5, 0.7)),
    ],
)
def test_sparsities_are_lists_and_ranges(text: str, expected: tuple[float, ...]) -> None:
    assert read_sparsities(text) == expected


@pytest.mark.parametrize("text", ["", "half", "0.3:0.9", "0.3:0.9:0", "0.3:0.9:-0.1", "0.3;0.5"])
def test_other_spellings_of_sparsities_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="sweep: sparsity is"):
        read_sparsities(text)


def test_methods_are_names_settings_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "methods.json"
    file.write_text(json.dumps({"slow": {"lr": 1e-5}, "et": {"epochs-retrain": 4}}))
    found = read_methods(f"none,long=epochs-retrain:6;scope:global;sparse:off,{file}")
    assert found == {
        "none": METHODS["none"],
        "long": {"epochs_retrain": 6, "scope": "global", "sparse": False},
        "slow": {"lr": 1e-5},
        "et": {"epochs_retrain": 4},
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("magic", "has 'magic', expected default"),
        ("none,none", "has 'none' twice"),
        ("long=epochs_retrain", "has 'epochs_retrain', expected setting:value"),
        ("a b=lr:1", "has the name 'a b'"),
    ],
)
def test_unknown_methods_are_named(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_methods(text)


def test_a_damaged_file_of_methods_is_named(tmp_path: Path) -> None:
    file = tmp_path / "methods.json"
    file.write_text("{")
    with pytest.raises(ValueError, match=r"methods\.json is not valid JSON"):
        read_methods(str(file))
    file.write_text('["none"]')
    with pytest.raises(ValueError, match=r"methods\.json holds something else"):
        read_methods(str(file))


def test_seeds_are_whole_numbers() -> None:
    assert read_seeds("0,2") == (0, 2)
    with pytest.raises(ValueError, match=r"seeds is '0\.5'"):
        read_seeds("0.5")


@pytest.mark.parametrize("text", ["", "half", "0", "1.1", "nan", "0.5,-1"])
def test_other_spellings_of_what_is_kept_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="sweep: keep_tokens is"):
        read_kept("keep_tokens", text)


# ---- what a grid may be


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patterns": ("round",)}, "pattern is 'round'"),
        ({"patterns": ("tile", "tile:16x16")}, "patterns has 'tile:16x16' twice"),
        ({"patterns": ()}, "patterns is empty"),
        ({"sparsities": (1.0,)}, "tile default 1 seed 0: .*sparsity"),
        ({"sparsities": (0.5, 0.5)}, "sparsities has 0.5 twice"),
        ({"sparsities": (0.1234567, 0.1234568)}, "both be kept in tile_default_0.123457_seed_0"),
        (
            {"methods": {"a": {}, "a_0.5_tokens": {}}, "keep_tokens": (1.0, 0.5)},
            "both be kept in tile_a_0.5_tokens_0.5_seed_0",
        ),
        ({"methods": {"../x": {}}}, r"methods has the name '\.\./x'"),
        ({"seeds": (1, 1)}, "seeds has 1 twice"),
        ({"seeds": (-1,)}, "seeds is"),
        ({"latency_threads": 0}, "latency_threads is 0"),
        ({"methods": {"x": {"learning": 1}}}, "method 'x' has 'learning', expected a setting"),
        ({"methods": {"x": {"lr": -1.0}}}, "tile x 0.5 seed 0: lr is -1.0"),
        ({"methods": {"x": {"seed": 3}}}, "method 'x' has 'seed', which the sweep itself decides"),
        ({"methods": {"x": {"dev_rows": 9}}}, "method 'x' has 'dev_rows'"),
        ({"methods": {"x": {"epochs_dense": 1.0}}}, "method 'x' has 'epochs_dense'"),
        (
            {"methods": {"x": {"epochs_reweighted": 0, "epochs_retrain": 0}}},
            "expected 0 with method 'x'",
        ),
        ({"methods": {"x": {"precompute": True}}}, "tile x 0.5 seed 0: precompute is True"),
        ({"settings": {"pattern": "row"}}, "settings has 'pattern'"),
        ({"settings": {"epochs_dense": 0.0}}, "epochs_dense is 0, expected a dense stage"),
        ({"settings": {"keep_tokens": 0.5}}, "settings has 'keep_tokens'"),
        ({"keep_tokens": (1.5,)}, "tile default 0.5 tokens 1.5 seed 0: keep_tokens is 1.5"),
        ({"keep_heads": ()}, "keep_heads is empty"),
        ({"keep_heads": (0.5, 0.5)}, "keep_heads has 0.5 twice"),
        (
            {"methods": {"as-is": METHODS["as-is"]}},
            "sparsity is 0.5, expected 0 with method 'as-is'",
        ),
    ],
    ids=str,
)
def test_what_a_grid_may_not_be(tiny_model: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(tiny_model, **changes)


def test_cells_start_from_the_dense_model_and_train_what_follows(tiny_model: Path) -> None:
    spec = make(
        tiny_model,
        methods={"slow": {"lr": 1e-5}},
        settings={"epochs_dense": 2.0, "lr": 1e-3, "saliency": "second-order", "distill": 0.5},
    )
    dense = spec.dense_settings(4)
    assert (dense.seed, dense.epochs_dense, dense.lr) == (4, 2.0, 1e-3)
    assert (dense.sparsity, dense.epochs_reweighted, dense.epochs_retrain) == (0.0, 0.0, 0.0)
    assert (dense.saliency, dense.distill) == ("magnitude", 0.0)
    cell = spec.cell_settings(Cell(Configuration("tile", "slow", 0.5), 4), tiny_model)
    assert (cell.model, cell.epochs_dense, cell.seed) == (str(tiny_model.resolve()), 0.0, 4)
    assert (cell.lr, cell.saliency, cell.distill) == (1e-5, "second-order", 0.5)


def test_cells_keep_tokens_and_heads(tiny_model: Path) -> None:
    spec = make(
        tiny_model,
        sparsities=(0.0,),
        methods={"as-is": METHODS["as-is"], "default": {}},
        keep_tokens=(1.0, 0.5),
        keep_heads=(1.0, 0.75),
    )
    cells = spec.cells()
    assert [c.name for c in cells[:4]] == [
        "tile as-is 0 seed 0",
        "tile as-is 0 heads 0.75 seed 0",
        "tile as-is 0 tokens 0.5 seed 0",
        "tile as-is 0 tokens 0.5 heads 0.75 seed 0",
    ]
    assert [spec.trains(c) for c in cells] == [False] * 4 + [True] * 4
    found = [spec.cell_settings(c, tiny_model) for c in cells[4:]]
    assert [(s.keep_tokens, s.keep_heads) for s in found] == [
        (None, None),
        (None, 0.75),
        (0.5, None),
        (0.5, 0.75),
    ]
    dense = spec.dense_settings(0)
    assert (dense.keep_tokens, dense.keep_heads) == (None, None)


def test_all_seeds_see_the_same_rows(tiny_model: Path) -> None:
    """Otherwise there would be nothing to pair."""
    spec = make(tiny_model, seeds=(0, 1), settings={"dev_rows": 10})
    assert {spec.dense_settings(seed).data_seed for seed in spec.seeds} == {0}


# ---- growing


def test_a_grid_grows_by_what_can_be_compared(tiny_model: Path) -> None:
    first = make(tiny_model, keep_tokens=(0.5,))
    second = make(
        tiny_model,
        patterns=("row",),
        sparsities=(0.3,),
        methods={"none": {"strength": 0.0}},
        keep_tokens=(0.7, 0.5),
    )
    both = first.extended(second)
    assert both.patterns == ("tile", "row")
    assert both.sparsities == (0.3, 0.5)
    assert list(both.methods) == ["default", "none"]
    assert (both.keep_tokens, both.keep_heads) == ((0.7, 0.5), (1.0,))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": "other"}, "data is 'other', expected 'data'"),
        ({"task": "mrpc"}, "task is 'mrpc', expected None"),
        ({"settings": {"lr": 1e-3}}, "lr is 0.001, expected 5e-05"),
        ({"methods": {"default": {"lr": 1e-3}}}, "method 'default' is"),
        ({"latency_threads": 2}, "latency_threads is 2, expected 1"),
    ],
    ids=str,
)
def test_what_could_not_be_compared_is_refused(
    tiny_model: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=f"sweep: {words}.* as in the sweep that was started"):
        make(tiny_model).extended(make(tiny_model, **changes))


def test_the_command_of_a_grid_makes_the_grid_again(tiny_model: Path) -> None:
    spec = make(
        tiny_model,
        patterns=("tile:32x16", "attention-aware"),
        sparsities=(0.3, 0.75),
        methods={"none": METHODS["none"], "long": {"epochs_retrain": 6.5, "sparse": False}},
        seeds=(0, 3),
        keep_tokens=(1.0, 0.35),
        keep_heads=(0.75,),
        settings={"lr": 3e-5, "bf16": True, "strength": "auto", "train_rows": 40},
        task="mrpc",
    )
    assert again(spec) == spec


def test_the_command_of_a_grid_spells_numbers_and_names_exactly(tiny_model: Path) -> None:
    third = 1 / 3
    spec = make(
        tiny_model,
        sparsities=(third, 0.5),
        methods={"plain": {}, "none": {"gradual": third, "lr_retrain": None, "precompute": False}},
        keep_tokens=(third,),
        settings={"lr": 1.2345678901234567e-5, "data_seed": None, "strength": 0.1 + 0.2},
    )
    assert again(spec) == spec
    assert spec.shared["data_seed"] == 0  # as where it is not given: rows pair over seeds


def again(spec: Spec) -> Spec:
    """The grid that its command asks for."""
    words = shlex.split(spec.command("out"))
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    assert words[0] == "spatile"
    found: Spec = command._spec(parser.parse_args(words[1:]))
    return found


# ---- the command


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--out", "o"],
        ["--model=m", "--data=d", "--out=o"],
        ["--model={model}", "--data=d", "--sparsity=1.0", "--out=o"],
        ["--model={model}", "--data=d", "--sparsity=x", "--out=o"],
        ["--model={model}", "--data=d", "--sparsity=.5", "--patterns=round", "--out=o"],
        ["--model={model}", "--data=d", "--sparsity=.5", "--methods=magic", "--out=o"],
        ["--model={model}", "--data=d", "--sparsity=.5", "--seeds=x", "--out=o"],
        ["--model={model}", "--data=d", "--sparsity=.5", "--jobs=0", "--out=o"],
        ["--model={model}", "--data=d", "--keep-tokens=0", "--out=o"],
        ["--model={model}", "--data=d", "--sparsity=.5", "--methods=as-is", "--out=o"],
        ["--model={model}", "--data=d", "--sparsity=.5", "--lr=-1", "--out=o"],
        ["--tables", "rows.json", "--model=m", "--out=o"],
    ],
    ids=" ".join,
)
def test_wrong_use_exits_with_2(
    arguments: list[str],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["sweep", *(a.format(model=tiny_model) for a in arguments)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
