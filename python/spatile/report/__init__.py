"""The report of a run: read, as text, and as one HTML file with plots."""

from __future__ import annotations

from spatile.report.html import render_html, write_html, write_page
from spatile.report.reading import read_report
from spatile.report.sentences import model_sections, prunes
from spatile.report.tables import is_above_floor
from spatile.report.text import render_text

__all__ = [
    "is_above_floor",
    "model_sections",
    "prunes",
    "read_report",
    "render_html",
    "render_text",
    "write_html",
    "write_page",
]
