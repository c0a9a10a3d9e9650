"""The report of a run: report.json for machines, report.html for people."""

from __future__ import annotations

from fathom.pipeline.report.data import RunData
from fathom.pipeline.report.page import render_page

__all__ = ["RunData", "render_page"]
