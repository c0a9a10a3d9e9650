"""The experiment's figure: the load of every expert under each loss, and perplexity against the number of experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fathom.study.plotting import PALETTE, grid, plot_style
from fathom.study.shazeer.table import NOISE

SMOOTHED = 0.05


def draw_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw loads above, perplexity and learning curves below."""
    ablation = sorted((row for row in rows if row["ablation"]), key=lambda row: -row["max_over_mean_load"])
    counts = [row for row in rows if row["counts"]]
    with plot_style():
        figure = Figure(figsize=(11.0, 7.2), layout="constrained")
        halves = figure.add_gridspec(2, 1, height_ratios=(1.0, 1.1))
        upper = figure.add_subfigure(halves[0])
        upper.suptitle(f"Load of every expert of {ablation[0]['name']}, busiest first (1: an even share)", fontsize=10)
        panels = upper.subplots(1, len(ablation), sharey=True, squeeze=False)[0]
        for index, (axes, row) in enumerate(zip(panels, ablation, strict=True)):
            _load(axes, row, PALETTE[index])
        panels[0].set_ylabel("load / mean load")
        left, right = figure.add_subfigure(halves[1]).subplots(1, 2)
        _perplexity(left, counts)
        _learning(right, rows)
        return figure


def _load(axes: Axes, row: Mapping[str, Any], ink: str) -> None:
    load = sorted(row["load"], reverse=True)
    axes.fill_between(range(len(load)), load, step="mid", color=ink, alpha=0.75, linewidth=0)
    axes.axhline(1.0, color="#222222", linewidth=0.8, linestyle="dashed")
    axes.set_yscale("symlog", linthresh=2.0)
    axes.set_yticks([0, 1, 2, 5, 10, 20], ["0", "1", "2", "5", "10", "20"])
    axes.set_title(_label(row))
    axes.set_xlabel("expert")
    axes.text(
        0.96,
        0.93,
        f"max/mean of a batch {row['max_over_mean_load']:.2f}",
        transform=axes.transAxes,
        ha="right",
        va="top",
    )
    grid(axes)


def _perplexity(axes: Axes, counts: Sequence[Mapping[str, Any]]) -> None:
    for marker, name, chosen in (
        ("o", "one level", [row for row in counts if row["layout"]["groups"] is None]),
        ("D", "two levels", [row for row in counts if row["layout"]["groups"] is not None]),
    ):
        x, y = [row["layout"]["experts"] for row in chosen], [row["perplexity"] for row in chosen]
        axes.plot(x, y, marker=marker, color=PALETTE[0 if marker == "o" else 1], linewidth=1.4, label=name)
        for row in chosen:
            offset = (6, 6) if marker == "o" else (6, -12)
            place = (row["layout"]["experts"], row["perplexity"])
            axes.annotate(f"{row['perplexity']:.2f}", place, offset, textcoords="offset points")
    axes.set_xscale("log", base=2)
    ticks = sorted({row["layout"]["experts"] for row in counts})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.margins(0.12)
    axes.set_xlabel("experts (each token takes 4)")
    axes.set_ylabel("held-out perplexity of a token")
    axes.set_title(f"More experts, the same work per token (within {NOISE:.1%}: as good as equal)")
    grid(axes)
    axes.legend()


def _learning(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for index, row in enumerate(rows):
        mean, smooth = row["losses"][0], []
        for value in row["losses"]:
            mean += SMOOTHED * (value - mean)
            smooth.append(mean)
        name = row["name"] if row["counts"] else f"{row['name']}, {_label(row)}"
        begun = len(smooth) // 4
        dash = "-" if row["counts"] else "--"
        axes.plot(
            range(begun, len(smooth)), smooth[begun:], color=PALETTE[index], linewidth=1.2, linestyle=dash, label=name
        )
    axes.set_xlabel("steps")
    axes.set_ylabel("training loss of a token (nats, smoothed)")
    axes.set_title("Learning")
    grid(axes)
    axes.legend(ncols=2)


def _label(row: Mapping[str, Any]) -> str:
    used = [name for name in ("importance", "load") if row[f"{name}_weight"]]
    return {0: "no balance loss", 1: f"{''.join(used)} loss only", 2: "both losses"}[len(used)]
