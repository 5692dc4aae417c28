"""docs/results.md is what the committed rows make."""

from __future__ import annotations

import re

from spatile.sweep.document import render_document
from tests.environments import ROOT

RESULTS = ROOT / "docs" / "results.md"


def test_the_results_are_made_from_the_rows_beside_them() -> None:
    files = sorted((ROOT / "docs" / "results").glob("*.json"))
    made = render_document(files, RESULTS)
    assert RESULTS.read_text("utf-8") == made, "make results-tables brings it up to date"


def test_links_of_the_results_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", RESULTS.read_text("utf-8")):
        assert (RESULTS.parent / link).is_file(), link


def test_commands_name_no_folder_of_a_machine() -> None:
    for command in re.findall(r"```sh\n(.*?)```", RESULTS.read_text("utf-8"), re.S):
        assert not re.search(r"[= ]/", command), command
