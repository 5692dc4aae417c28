"""The report as text and as HTML, and what it refuses to read."""

from __future__ import annotations

import copy
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from spatile.report import read_report, render_html, render_text
from tests.finetune.conftest import Finished


@pytest.fixture
def report(finished: Finished) -> dict[str, Any]:
    """A copy that a test may change."""
    return copy.deepcopy(finished.report)


def test_the_text_puts_every_stage_beside_the_floor(report: dict[str, Any]) -> None:
    text = render_text(report)
    table = text.partition("Scores on dev")[2].partition("\n\n")[0].splitlines()
    rows = [line.split("  ")[1] for line in table[2:9]]
    assert rows == [
        "majority class",
        "pretrained (head untrained)",
        "dense",
        "λ = 0, pruned",
        "reweighted",
        "pruned",
        "retrained",
    ]
    accuracy = report["scores"]["retrained"]["accuracy"]
    shown = f"{accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]"
    assert shown in table[8]


def test_the_text_states_what_the_times_were_measured_on(report: dict[str, Any]) -> None:
    text = render_text(report)
    assert "24 in batches of 1, 24 in batches of 32; 1 interleaved rounds" in text
    assert f"1 threads on {report['environment']['processor']}" in text
    assert f"torch {report['environment']['torch']}" in text


def test_the_verdict_follows_the_interval(report: dict[str, Any]) -> None:
    report["floor"]["accuracy"]["value"] = 0.5
    report["scores"]["retrained"]["accuracy"].update(value=0.6, low=0.51, high=0.7)
    assert "accuracy is above the majority class's 0.500" in render_text(report)
    report["scores"]["retrained"]["accuracy"].update(low=0.49)
    assert "accuracy is NOT above the majority class's 0.500" in render_text(report)


def test_notes_of_the_data_are_shown(report: dict[str, Any]) -> None:
    report["data"]["notes"] = ["16 rows taken out of <train>"]
    assert "16 rows taken out of <train>" in render_text(report)
    assert "16 rows taken out of &lt;train&gt;" in render_html(report)


def test_no_timing_is_no_table(report: dict[str, Any]) -> None:
    report["timing"] = None
    assert "Milliseconds" not in render_text(report)
    assert "Milliseconds" not in render_html(report)


class _Checker(HTMLParser):
    """Collects tags, and addresses that would need a network."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]


def test_the_html_holds_its_plots_and_needs_no_network(finished: Finished) -> None:
    checker = _Checker()
    html = (finished.folder / "report.html").read_text("utf-8")
    checker.feed(html)
    assert checker.tags.count("svg") == 4
    assert checker.tags.count("figure") == 4
    assert all(address.startswith(("#", "data:")) for address in checker.addresses)
    assert not re.search(r"url\((?!#)|@import", html)
    assert "before the reweighted stage" in html


def test_the_html_is_the_same_every_time(report: dict[str, Any]) -> None:
    assert render_html(report) == render_html(report)


def test_without_matplotlib_the_html_says_so(
    report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    html = render_html(report)
    assert "No plots: matplotlib" in html
    assert "<svg" not in html
    assert "Scores on dev after each stage" in html


def test_plots_leave_other_figures_alone(report: dict[str, Any]) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    render_html(report)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "format is not 'spatile.report'"),
        (json.dumps({"format": "spatile.run"}), "format is not 'spatile.report'"),
        (
            json.dumps({"format": "spatile.report", "version": 2}),
            "version is 2, expected 1: it was written by another version",
        ),
    ],
)
def test_a_damaged_or_newer_report_is_refused_by_name(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "report.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_report(tmp_path)
    assert str(tmp_path / "report.json") in str(caught.value)


def test_how_it_was_pruned_is_said(report: dict[str, Any]) -> None:
    assert "by norm; ranked within each matrix" in render_text(report)
    report["pruning"]["saliency"], report["pruning"]["scope"] = "second-order", "global"
    report["pruning"]["prunings"] = [
        {"step": 5, "pruned": 0.4375, "relative_errors": {"a": 0.5}},
        {"step": 9, "pruned": 0.5, "relative_errors": {"a": 0.01, "b": 0.02, "c": 0.3}},
    ]
    report["settings"].update(distill=0.5, distill_hidden=1.0)
    text = render_text(report)
    assert "by second order" in text
    assert "all matrices ranked together" in text
    assert "43.8 %, 50.0 % of the weights, after steps 5, 9" in text
    assert "relative: median 2.0 %, worst 30.0 % (c)" in text
    assert "learned from the dense stage, by weight: logits 0.5, hidden states 1" in text


def test_a_run_without_a_lasso_has_a_report(report: dict[str, Any]) -> None:
    del report["pruning"]["reweighted"], report["differences"]["pruned - lambda_zero"]
    del report["scores"]["lambda_zero"]
    assert "group norms, median" not in render_text(report)
    assert "<h2>The pruning</h2>" in render_html(report)


def test_what_layers_work_on_is_said(report: dict[str, Any]) -> None:
    assert "averaged over the layers" not in render_text(report)
    report["settings"].update(keep_tokens=0.5, keep_heads=0.75)
    said = "each works on 50.0 % of an input's tokens and 75.0 % of the heads"
    assert said in render_text(report)
    report["settings"].update(keep_tokens=None)
    assert "each works on 75.0 % of the heads: on the most" in render_text(report)
