"""report.html: one file that asks nothing of the network."""

from __future__ import annotations

from importlib import resources
from typing import Any

import jinja2

from fathom.pipeline.report import pictures
from fathom.pipeline.report.data import RunData, expert_summary


def render_page(data: RunData) -> str:
    """Return a run's report as one self-contained HTML page; every text from data is escaped."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["duration"] = _duration
    environment.filters["fact"] = _fact
    source = resources.files("fathom.pipeline.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    total = sum(seconds for _, seconds in data.stages)
    return environment.from_string(source).render(
        data=data,
        total=total,
        longest=max((seconds for _, seconds in data.stages), default=1.0) or 1.0,
        experts=expert_summary(data.expert_loads, data.dropped_fraction),
        charts=_charts(data),
    )


def _charts(data: RunData) -> dict[str, str]:
    charts = {}
    if any(curve.x for curve in data.losses):
        charts["loss"] = pictures.loss_chart(data.losses)
    if any(curve.x for curve in data.bits_over_training):
        charts["bits"] = pictures.bits_chart(data.bits_over_training)
    if data.expert_loads:
        charts["loads"] = pictures.load_chart(data.expert_loads)
    if data.needle is not None:
        charts["needle"] = pictures.needle_chart(data.needle)
    if data.cache_bytes_per_token:
        charts["cache"] = pictures.cache_chart(data.cache_bytes_per_token, data.cache_kind)
    return charts


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def _fact(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
