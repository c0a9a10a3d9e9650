"""The plot style of the studies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes

PALETTE = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#14b8a6", "#eab308", "#ec4899", "#64748b", "#84cc16")
"""Colours distinguishable by most readers; the first three also by those that confuse red and green."""
_STYLE: Any = {
    "axes.unicode_minus": False,
    "text.usetex": False,
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@contextmanager
def plot_style() -> Iterator[None]:
    """While entered, figures are drawn in the studies' style."""
    with matplotlib.rc_context(_STYLE):
        yield


def grid(axes: Axes) -> None:
    """Draw thin lines behind the data."""
    axes.set_axisbelow(True)
    axes.grid(alpha=0.25, linewidth=0.5)
