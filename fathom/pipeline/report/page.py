"""report.html: one file that asks nothing of the network."""

from __future__ import annotations

from importlib import resources
from itertools import groupby
from typing import Any

import jinja2
from markupsafe import Markup

from fathom.locale import marked, spoken, tr
from fathom.pipeline.report import charts, posttraining_charts
from fathom.pipeline.report.data import RunData, TaskScore, expert_summary
from fathom.pipeline.report.summary import summary

LABELS = {
    "parameters": marked("parameters"),
    "active_parameters": marked("active parameters"),
    "attention": marked("attention"),
    "layers": marked("layers"),
    "hidden_size": marked("hidden size"),
    "vocabulary": marked("vocabulary"),
    "context": marked("context"),
    "tokens": marked("tokens"),
    "tokens_per_second": marked("tokens per second"),
    "experts": marked("experts"),
    "shared_experts": marked("shared experts"),
}
"""Facts of a run -> how a page calls them."""
MAX_SHOWN = 4000
"""Characters of an answer that a page shows."""
ONLINE, PREFERENCES = marked("Learning from its own answers"), marked("Learning from pairs of answers")


def render_page(data: RunData) -> str:
    """Return a run's report as one self-contained HTML page; every text from data is escaped, and none is endless."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_shown)
    environment.filters["duration"] = _duration
    environment.filters["label"] = _label
    environment.filters["fact"] = _fact
    environment.filters["percent"] = _percent
    environment.filters["accuracy"] = _accuracy
    environment.filters["change"] = _change
    source = resources.files("fathom.pipeline.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    total = sum(seconds for _, seconds in data.stages)
    return environment.from_string(source).render(
        tr=tr,
        language=spoken().replace("_", "-"),
        data=data,
        summary=summary(data),
        total=total,
        longest=max((seconds for _, seconds in data.stages), default=1.0) or 1.0,
        experts=expert_summary(data.expert_loads, data.dropped_fraction),
        charts=_draw_charts(data),
        problems={task: list(of) for task, of in groupby(data.problems, key=lambda problem: problem.task)},
        online=[(curves.name, posttraining_charts.step_chart(curves, ONLINE)) for curves in data.online],
        preferences=[(curves.name, posttraining_charts.step_chart(curves, PREFERENCES)) for curves in data.preferences],
        figures=list(
            dict.fromkeys(name for task in data.tasks.values() for score in task.values() for name in score.more)
        ),
    )


def _draw_charts(data: RunData) -> dict[str, str]:
    drawn: dict[str, str] = {}
    if any(curve.x for curve in data.losses):
        drawn["loss"] = charts.loss_chart(data.losses)
    if any(curve.x for curve in data.bits_over_training):
        drawn["bits"] = charts.bits_chart(data.bits_over_training)
    if data.expert_loads:
        drawn["loads"] = charts.load_chart(data.expert_loads)
    if data.needle is not None:
        drawn["needle"] = charts.needle_chart(data.needle)
    if data.cache_bytes_per_token:
        drawn["cache"] = charts.cache_chart(data.cache_bytes_per_token, data.cache_kind)
    if any(curve.x for curve in data.sft_loss_curves):
        drawn["tuning"] = charts.loss_chart(data.sft_loss_curves)
    if data.tasks:
        drawn["tasks"] = posttraining_charts.tasks_chart(data.tasks)
    return drawn


def _duration(seconds: float) -> str:
    if seconds < 60:
        return tr("{seconds} s", seconds=f"{seconds:.1f}")
    return tr("{minutes} min {seconds} s", minutes=int(seconds // 60), seconds=int(seconds % 60))


def _label(name: str) -> str:
    return tr(LABELS.get(name, name.replace("_", " ")))


def _fact(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _accuracy(score: TaskScore) -> str:
    low, high = f"{100 * score.low:.1f}", f"{100 * score.high:.1f}"
    return tr("{value} ({low} to {high})", value=_percent(score.accuracy), low=low, high=high)


def _change(score: TaskScore) -> str:
    """By how many percentage points accuracy rose over the stage before."""
    change = score.change
    if change is None:
        return "-"
    low, high = (f"{100 * end:+.1f}" for end in (change.low, change.high))
    return tr("{value} ({low} to {high})", value=f"{100 * change.value:+.1f}", low=low, high=high)


def _shown(value: Any) -> Any:
    """Return what a page can show of a text from data: no control characters, and a middle that is not endless."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    text = str(value)
    if len(text) > MAX_SHOWN:
        cut = tr("{count} characters left out", count=f"{len(text) - MAX_SHOWN:,}")
        text = f"{text[: MAX_SHOWN // 2]}\n[... {cut} ...]\n{text[-MAX_SHOWN // 2 :]}"
    return "".join(c if c in "\n\t" or c.isprintable() or c.isspace() else "\ufffd" for c in text)
