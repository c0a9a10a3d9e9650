"""The report step: report.json and report.html from what the other steps left."""

from __future__ import annotations

from fathom.files import write_json, write_text
from fathom.inference.run_record import read_state
from fathom.pipeline.context import StepContext
from fathom.pipeline.report import render_page
from fathom.pipeline.report.collect import collect
from fathom.spec.recipe import ReportStep


def run(step: ReportStep, context: StepContext) -> None:
    """Write the page at ``context.path(step)`` and the JSON beside it."""
    data = collect(context.recipe, context.directory, read_state(context.directory), step)
    page = context.path(step)
    write_json(page.with_suffix(".json"), data.to_json())
    write_text(page, render_page(data))
