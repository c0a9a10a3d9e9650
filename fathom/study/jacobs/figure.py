"""The experiment's figure: which expert wins where in the input plane, and learning curves.

Dimensions: N points of the plane, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from fathom.study.jacobs.measures import Measures
from fathom.study.jacobs.systems import System, TrainingHistory
from fathom.study.jacobs.vowels import VOWELS, Cases
from fathom.study.plotting import PALETTE, grid, plot_style

_MARKERS = ("o", "^", "s", "D")
_SIDE = 240
_EVERY = 10
_DOTS = {"mixture": "o", "competitive": "x", "cooperative": "^"}
_INKS = {"mixture": PALETTE[0], "competitive": PALETTE[1], "cooperative": PALETTE[2], "backprop": PALETTE[8]}


class Row(Protocol):
    """The data drawn of a trained system."""

    @property
    def error(self) -> str:
        """Its error's name."""
        ...

    @property
    def size(self) -> int:
        """Its experts or hidden units."""
        ...

    @property
    def descent(self) -> TrainingHistory:
        """How it was trained."""
        ...

    @property
    def system(self) -> System:
        """Its last weights."""
        ...

    @property
    def test_at_end(self) -> Measures:
        """What they measure."""
        ...


class Sizes(Protocol):
    """Sizes in the labels."""

    @property
    def criterion(self) -> float:
        """The error at which training counts as done."""
        ...

    @property
    def epochs(self) -> int:
        """How long it went on."""
        ...


def draw_figure(planes: Sequence[Row], rows: Sequence[Row], test: Cases, sizes: Sizes) -> Figure:
    """Draw ``planes`` side by side above the learning curves and the specialisation of all ``rows``."""
    with plot_style():
        figure = Figure(figsize=(11.0, 7.6), layout="constrained")
        rows_of_figure = figure.add_gridspec(2, 1, height_ratios=(1.15, 1.0))
        upper, lower = figure.add_subfigure(rows_of_figure[0]), figure.add_subfigure(rows_of_figure[1])
        upper.suptitle(
            "The likeliest of the experts at each point (first run), pale where the gate hesitates", fontsize=10
        )
        axes = upper.subplots(1, len(planes), sharex=True, sharey=True, squeeze=False)[0]
        for axis, row in zip(axes, planes, strict=True):
            _plane(axis, row, test)
        axes[0].set_ylabel("second formant (kHz)")
        handles, labels = axes[0].get_legend_handles_labels()
        upper.legend(handles, labels, loc="outside lower center", ncols=len(handles))
        left, right = lower.subplots(1, 2, width_ratios=(1.35, 1.0))
        _curves(left, rows, sizes)
        _specialisation(right, rows)
        return figure


@torch.no_grad()
def _plane(axes: Axes, row: Row, test: Cases) -> None:
    """Colour each point by its winning expert of the first run, paler the more the gate hesitates."""
    low, high = test.formants_N2.amin(0) - 0.08, test.formants_N2.amax(0) + 0.08
    first, second = (torch.linspace(float(low[i]), float(high[i]), _SIDE) for i in range(2))
    plane_N2 = torch.stack(torch.meshgrid(first, second, indexing="xy"), dim=-1).reshape(-1, 2)
    outputs, log_gates = row.system(plane_N2)
    gates_NE, answers_NE = log_gates[0].exp(), outputs[0, ..., 0]
    best, winner = (values.view(_SIDE, _SIDE) for values in gates_NE.max(-1))
    order = gates_NE.mean(0).argsort(descending=True).tolist()
    inks = np.array([to_rgb(PALETTE[order.index(expert) % len(PALETTE)]) for expert in range(row.size)])
    strength = ((best - 0.5).clamp(0, 0.5) * 1.1).unsqueeze(-1).numpy()
    image = 1.0 - strength * (1.0 - inks[winner.numpy()])
    extent = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
    axes.imshow(image, origin="lower", extent=extent, aspect="auto", interpolation="bilinear")
    for expert in range(row.size):
        owned = winner == expert
        if float(gates_NE[:, expert].mean()) > 0.02:
            line = torch.where(owned, answers_NE[:, expert].view(_SIDE, _SIDE), torch.nan)
            axes.contour(first, second, line.numpy(), levels=[0.5], colors=[inks[expert] * 0.55], linewidths=2.2)
    blended = (gates_NE * answers_NE).sum(-1).view(_SIDE, _SIDE)
    axes.contour(first, second, blended.numpy(), levels=[0.5], colors="black", linewidths=0.9, linestyles="dashed")
    for index, vowel in enumerate(VOWELS):
        x, y = test.formants_N2[test.vowels_N == index].unbind(1)
        fill = "white" if index % 2 else "#222222"
        axes.scatter(
            x, y, s=13, marker=_MARKERS[index], c=fill, edgecolors="#222222", linewidths=0.7, label=f"[{vowel}]"
        )
    axes.plot([], [], color="black", linewidth=0.9, linestyle="dashed", label="where the blend changes its mind")
    axes.plot([], [], color="#666666", linewidth=2.2, label="where the winning expert does")
    share = float(row.test_at_end.experts_per_case[0])
    axes.set_title(f"{row.error} error: {share:.2f} experts per case")
    axes.set_xlabel("first formant (kHz)")


def _curves(axes: Axes, rows: Sequence[Row], sizes: Sizes) -> None:
    """Mean squared error over epochs: the mean of all runs, one line a system."""
    smallest = min(row.size for row in rows if row.error == "backprop" or row.size >= 4)
    last = 1
    for row in rows:
        if row.error != "backprop" and row.size < 4:
            continue
        errors = row.descent.errors_TR.mean(1)
        above = (errors > sizes.criterion).nonzero()
        last = max(last, int(above[-1]) if len(above) else 1)
        name = f"{row.size} hidden" if row.error == "backprop" else f"{row.size} experts"
        style = "-" if row.size in (smallest, 6) else "--"
        axes.plot(
            range(0, len(errors), _EVERY),
            errors[::_EVERY].numpy(),
            color=_INKS[row.error],
            linestyle=style,
            linewidth=1.4,
            label=f"{row.error}, {name}",
        )
    axes.set_xlim(0, min(sizes.epochs, 1.25 * last))
    axes.axhline(sizes.criterion, color="#64748b", linewidth=0.8)
    axes.text(0.0, sizes.criterion, " criterion", va="bottom", color="#64748b", fontsize=8)
    axes.set_xlabel("epochs")
    axes.set_ylabel("training error, mean of all runs")
    axes.set_title("Learning")
    axes.set_ylim(bottom=0.05)
    grid(axes)
    axes.legend(ncols=2, loc="upper right")


def _specialisation(axes: Axes, rows: Sequence[Row]) -> None:
    """Excess error of the winner over the blend against experts per case, one dot per run."""
    for error in ("mixture", "competitive", "cooperative"):
        kinds = [row.test_at_end for row in rows if row.error == error]
        x = torch.cat([kind.experts_per_case for kind in kinds])
        y = torch.cat([kind.dependence for kind in kinds])
        axes.scatter(x, y, s=16, color=_INKS[error], alpha=0.6, marker=_DOTS[error], label=error)
    axes.set_xlabel("experts per case (1: each case has one owner)")
    axes.set_ylabel("dependence: error of winner - error of blend")
    axes.set_title("Specialisation after training, every run")
    grid(axes)
    axes.legend(loc="best")
