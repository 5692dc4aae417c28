"""What a report shows of the packed model: its masks, and sentences where it has schedules."""

from __future__ import annotations

import base64
import json
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from spatile.cli import main
from spatile.inference import Encoder
from spatile.report import model_sections
from spatile.report.masks import png_of
from spatile.sparsity import Schedule
from tests.finetune.conftest import Finished


@pytest.fixture
def scheduled(finished: Finished, tmp_path: Path) -> Path:
    """The run, whose packed model was saved with schedules."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("report.json", "run.json"):
        shutil.copy(finished.folder / name, run)
    encoder = Encoder.load(
        finished.folder / "packed",
        tokens=Schedule.per_layer([1, 0.5]),
        heads=Schedule.per_layer([1, 0.5]),
    )
    encoder.save(run / "packed")
    return run


def pixels(png: bytes) -> np.ndarray:
    """(rows, columns) uint8 of a grey PNG without filters, its checksums verified."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, data, shape = 8, b"", (0, 0)
    while at < len(png):
        (size,), kind = struct.unpack(">I", png[at : at + 4]), png[at + 4 : at + 8]
        body = png[at + 8 : at + 8 + size]
        assert struct.unpack(">I", png[at + 8 + size : at + 12 + size])[0] == zlib.crc32(
            kind + body
        )
        if kind == b"IHDR":
            columns, rows, *rest = struct.unpack(">IIBBBBB", body)
            assert rest == [8, 0, 0, 0, 0]
            shape = (rows, columns)
        data += body if kind == b"IDAT" else b""
        at += 12 + size
    raw = np.frombuffer(zlib.decompress(data), np.uint8).reshape(shape[0], shape[1] + 1)
    assert not raw[:, 0].any()
    return raw[:, 1:]


def html_of(run: Path, tmp_path: Path) -> str:
    assert main(["report", str(run), "--html", str(tmp_path / "r.html")]) == 0
    return (tmp_path / "r.html").read_text("utf-8")


def test_a_png_holds_its_shares() -> None:
    shares = np.array([[0.0, 1.0, 0.5], [1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(pixels(png_of(shares)), [[245, 40, 142], [40, 245, 245]])


def test_the_pictures_are_the_masks(finished: Finished) -> None:
    encoder = Encoder.load(finished.folder / "packed")
    html = "".join(model_sections(encoder, None))
    pictures = re.findall(r"title='([^:]+): [^']+' width='\d+' height='\d+' src='([^']+)'", html)
    assert len(pictures) == 12
    assert sorted(name for name, _ in pictures) == sorted(encoder.masks)
    for name, address in pictures:
        png = base64.b64decode(address.removeprefix("data:image/png;base64,"))
        mask = encoder.masks[name]
        turned = name.endswith("intermediate.dense")
        np.testing.assert_array_equal(pixels(png) < 128, mask.T if turned else mask)
    assert "Words and heads" not in html, "it has no schedules"


def test_masks_of_many_groups_are_averaged(finished: Finished, tmp_path: Path) -> None:
    dense, out = finished.folder / "stages" / "dense", tmp_path / "small"
    arguments = ["--sparsity", "0.5", "--pattern", "column", "--out", str(out)]
    assert main(["prune", "--model", str(dense), *arguments]) == 0
    encoder = Encoder.load(out)
    html = "".join(model_sections(encoder, None))
    for address in re.findall(r"src='data:image/png;base64,([^']+)'", html):
        assert pixels(base64.b64decode(address)).shape[1] <= 128
    assert "50 %" in html


def test_a_dense_model_has_no_pictures(finished: Finished) -> None:
    assert model_sections(Encoder.load(finished.folder / "stages" / "dense"), None) == []


def test_sentences_of_dev_are_explained(
    scheduled: Path, finished: Finished, tmp_path: Path
) -> None:
    html = html_of(scheduled, tmp_path)
    rows = re.findall(r"<h3>Row (\d+) of dev, whose label is (high|low)</h3>", html)
    assert [int(row) for row, _ in rows] == [1, 5, 10, 14, 19, 24]
    assert html.count("class='spatile-explain'") == 6
    assert "<s class='just'>" in html
    text = Path(json.loads((scheduled / "report.json").read_text())["settings"]["data"])
    line = json.loads((text / "dev.jsonl").read_text().splitlines()[4])
    assert line["sentence"] in re.sub(r"<[^>]+>", "", html)
    assert (rows[1][1]) == line["label"]
    assert not re.search(r"https?://(?!www\.w3\.org|purl\.org|creativecommons|matplotlib)", html)


def test_data_that_is_gone_is_said(scheduled: Path, tmp_path: Path) -> None:
    report = json.loads((scheduled / "report.json").read_text("utf-8"))
    report["settings"]["data"] = str(tmp_path / "nowhere")
    (scheduled / "report.json").write_text(json.dumps(report), encoding="utf-8")
    html = html_of(scheduled, tmp_path)
    assert "No sentences: " in html
    assert "nowhere" in html
    assert "What is kept of each matrix" in html


def test_a_run_without_its_model_still_has_a_report(scheduled: Path, tmp_path: Path) -> None:
    shutil.rmtree(scheduled / "packed")
    html = html_of(scheduled, tmp_path)
    assert "What is kept of each matrix" not in html
    assert "Scores on dev after each stage" in html
