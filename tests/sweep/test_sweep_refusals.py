"""What a sweep refuses to go on with: rows that could not be compared, and folders in use."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from spatile.cli import main
from spatile.sweep.folder import SweepFolder

from .conftest import Capture, Swept, written


def test_other_data_of_the_same_name_is_refused(
    copied: Swept, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SweepFolder.open(copied.folder).spec
    spec = replace(spec, data=tiny_data.name, started_in=str(tiny_data.parent))
    shutil.copytree(tiny_data, tmp_path / tiny_data.name)
    monkeypatch.chdir(tmp_path)
    other = replace(spec, started_in="")
    with pytest.raises(ValueError, match=f"data is '{tmp_path}.*, expected '{tiny_data}' as in"):
        spec.extended(other)


def test_what_could_not_be_compared_is_refused(copied: Swept, capsys: Capture) -> None:
    how = ["--resume", "--out", str(copied.folder)]
    assert main([*copied.arguments, *how, "--lr=1e-3"]) == 1
    assert capsys.readouterr().err == (
        "spatile: sweep: lr is 0.001, expected 0.003 as in the sweep that was started\n"
    )
    changed = "--methods=none=strength:0;epochs_retrain:3"
    assert main([*copied.arguments, *how, changed]) == 1
    assert "method 'none' is {'strength': 0" in capsys.readouterr().err


def test_what_other_defaults_have_trained_is_not_mixed_with_new_rows(
    copied: Swept, capsys: Capture
) -> None:
    file = copied.folder / "cells" / "tile_none_0.5_seed_0" / "run" / "run.json"
    run = json.loads(file.read_text())
    run["settings"]["gradual"] = 0.75  # as if that had been the default
    file.write_text(json.dumps(run))
    before = written(copied.folder)
    how = ["--resume", "--timing-rounds=0", "--out", str(copied.folder), "--quiet"]
    assert main(["sweep", *how]) == 0  # nothing is left to train
    assert main(["sweep", *how, "--seeds=0,1,2"]) == 1
    assert capsys.readouterr().err.startswith(
        "spatile: sweep: gradual is 0.3333333333333333, expected 0.75 as in tile none 0.5 "
        "seed 0, which another version has trained"
    )
    assert SweepFolder.open(copied.folder).spec.seeds == (0, 1)
    assert written(copied.folder) == before


def test_other_rows_of_data_are_refused(copied: Swept, capsys: Capture) -> None:
    file = copied.folder / "sweep.json"
    state = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**state, "data": "0" * 64}), "utf-8")
    assert main(["sweep", "--resume", "--out", str(copied.folder)]) == 1
    assert "whose rows are not those that" in capsys.readouterr().err


def test_cells_scored_on_other_dev_rows_are_refused(copied: Swept, capsys: Capture) -> None:
    """A result that was put there from a sweep over other rows."""
    file = copied.folder / "cells" / "row_none_0.8_seed_1" / "result.json"
    result = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**result, "predictions": "01"}), "utf-8")
    assert main(["sweep", "--resume", "--out", str(copied.folder)]) == 1
    assert "row none 0.8 seed 1 has 2 dev rows, expected 24" in capsys.readouterr().err


def test_a_folder_that_holds_something_is_refused(
    swept: Swept, tmp_path: Path, capsys: Capture
) -> None:
    assert main([*swept.arguments, "--out", str(swept.folder)]) == 1
    assert "holds a sweep, expected an empty or new folder; --resume" in capsys.readouterr().err
    (tmp_path / "mine.txt").write_text("")
    assert main([*swept.arguments, "--out", str(tmp_path)]) == 1
    assert "which holds files, expected an empty or new folder" in capsys.readouterr().err
    assert main(["sweep", "--resume", "--out", str(tmp_path)]) == 1
    assert "no sweep.json" in capsys.readouterr().err


def test_two_processes_don_t_work_on_one_sweep(copied: Swept, capsys: Capture) -> None:
    with SweepFolder.open(copied.folder).locked():
        assert main(["sweep", "--resume", "--out", str(copied.folder)]) == 1
    assert "another process is at work in" in capsys.readouterr().err


def test_a_damaged_time_names_the_folder_to_delete(copied: Swept, capsys: Capture) -> None:
    """The packed model is gone by then: without the time alone, nothing could be timed again."""
    cell = copied.folder / "cells" / "tile_none_0.5_seed_0"
    (cell / "timing.json").write_text("{")
    how = ["--resume", "--out", str(copied.folder), "--quiet"]
    assert main(["sweep", *how]) == 1
    error = capsys.readouterr().err
    assert "timing.json: not valid JSON" in error
    assert f"without {cell} the cell starts anew" in error
    shutil.rmtree(cell)
    assert main(["sweep", *how, "--timing-rounds=1"]) == 0
    assert (cell / "timing.json").is_file()
