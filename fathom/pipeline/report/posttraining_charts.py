"""Charts of what came after pretraining: accuracy on tasks, and reward, length and entropy over steps."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
from matplotlib.figure import Figure

from fathom.locale import marked, tr
from fathom.pipeline.report.charts import INK, PALETTE, STYLE, WIDTH, draw_line, plain, svg
from fathom.pipeline.report.data import StepCurves, TaskScore

BAR = 0.2
"""Height of a bar in inches; the space between two groups is as high."""


def tasks_chart(tasks: Mapping[str, Mapping[str, TaskScore]]) -> str:
    """Accuracy of every stage with its 95 % interval, one group of bars per task."""
    stages = list(dict.fromkeys(stage for scores in tasks.values() for stage in scores))
    colours = {stage: PALETTE[index % len(PALETTE)] for index, stage in enumerate(stages)}
    rows = sum(len(scores) + 1 for scores in tasks.values())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.1 + BAR * rows), layout="constrained")
        axes = figure.subplots()
        row, middles = 0, []
        for scores in tasks.values():
            middles.append(row + (len(scores) - 1) / 2)
            for stage, score in scores.items():
                reach = [[100 * max(0.0, score.accuracy - score.low)], [100 * max(0.0, score.high - score.accuracy)]]
                axes.barh(row, 100 * score.accuracy, height=0.82, color=colours[stage], label=plain(stage))
                axes.errorbar(100 * score.accuracy, row, xerr=reach, color=INK, linewidth=1.1, capsize=2.5)
                row += 1
            row += 1
        axes.set_yticks(middles, [plain(task) for task in tasks])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(row - 1.4, -0.6)
        axes.set_xlim(0, 100)
        axes.set_xlabel(marked("right answers in percent, with 95 % intervals"))
        axes.grid(axis="x", alpha=0.25, linewidth=0.5)
        axes.set_axisbelow(True)
        handles, labels = axes.get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True))
        figure.legend(
            list(named.values()), list(named), loc="outside upper center", fontsize=9, ncols=min(len(named), 5)
        )
        return svg(figure, tr("Accuracy on held-out problems by stage"))


def step_chart(found: StepCurves, title: str) -> str:
    """How a step learned, one panel below the other over steps."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.5 + 1.75 * len(found.panels)), layout="constrained")
        panels = figure.subplots(len(found.panels), 1, squeeze=False, sharex=True)[:, 0]
        for axes, (label, curves) in zip(panels, found.panels.items(), strict=True):
            for index, curve in enumerate(curves):
                draw_line(axes, curve, PALETTE[index % len(PALETTE)], smooth=True, unit=1)
            axes.set_ylabel(label)
            axes.grid(alpha=0.25, linewidth=0.5)
            if len(curves) > 1:
                axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
        panels[-1].set_xlabel(marked("training step"))
        return svg(figure, tr("{title}: {name}", title=tr(title), name=plain(found.name)))
