"""The report of a run: read, as text, and as one HTML file with plots."""

from __future__ import annotations

from spatile.report.html import render_html, write_html
from spatile.report.reading import read_report
from spatile.report.text import render_text

__all__ = ["read_report", "render_html", "render_text", "write_html"]
