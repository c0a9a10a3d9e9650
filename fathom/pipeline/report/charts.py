"""Charts as inline SVG whose text takes the page's colour, so that they read on light and dark alike.

Labels are drawn in English and ASCII, whose fonts are everywhere, and those of axes are then translated in the SVG: its
text is drawn by the browser. Names from data are replaced where a font might lack them.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fathom.locale import marked, tr
from fathom.pipeline.report.data import Curve, ExpertLoads, Needle

INK = "#123456"
"""Stands for the page's text colour until the SVG is written."""
PALETTE = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#14b8a6", "#eab308", "#ec4899", "#64748b", "#84cc16")
WIDTH = 7.2
MAX_LEGEND = 12
MAX_LABEL = 40
"""Characters of a name that a picture shows."""
MAX_PANEL_LABEL = 16
"""And beside a panel that is one layer high."""
TOKEN_UNITS = ((1e6, marked("million tokens")), (1e3, marked("thousand tokens")), (1, marked("tokens")))
STYLE: Any = {
    "axes.unicode_minus": False,
    "text.usetex": False,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "fathom",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}


def loss_chart(curves: Sequence[Curve]) -> str:
    """Training loss over tokens, one line per stage."""
    return _lines(curves, marked("loss (nats per token)"), smooth=True)


def bits_chart(curves: Sequence[Curve]) -> str:
    """Held-out bits per byte over tokens, one line per source."""
    return _lines(curves, marked("bits per byte"), smooth=False)


def load_chart(loads: Sequence[ExpertLoads]) -> str:
    """Load of every expert over training, one heat map per layer; 1 is an even load."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.6 + 1.35 * len(loads)), layout="constrained")
        rows = figure.subplots(len(loads), 1, squeeze=False, sharex=True)[:, 0]
        image = None
        unit, named = token_unit(max((load.tokens[-1] for load in loads), default=0.0))
        for axes, load in zip(rows, loads, strict=True):
            columns = list(zip(*load.shares, strict=True))
            first, last = load.tokens[0] / unit, max(load.tokens[-1], load.tokens[0] + 1) / unit
            extent = (first, last, len(columns) - 0.5, -0.5)
            image = axes.imshow(
                columns, aspect="auto", cmap="viridis", vmin=0, vmax=2.5, extent=extent, interpolation="nearest"
            )
            axes.set_ylabel(plain(load.layer, MAX_PANEL_LABEL))
        rows[-1].set_xlabel(named)
        if image is not None:
            bar = figure.colorbar(image, ax=list(rows), extend="max", pad=0.02, shrink=min(1.0, 2.0 / len(loads)))
            bar.set_label(marked("load / even load"))
        return svg(figure, tr("Load of every expert over training"))


def needle_chart(needle: Needle) -> str:
    """Accuracy over depth and length; the gain in bits per answer token is written into each cell."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.2 + 0.42 * len(needle.depths)), layout="constrained")
        axes = figure.subplots()
        cells = [list(column) for column in zip(*needle.accuracy, strict=True)]
        image = axes.imshow(cells, aspect="auto", cmap="YlGn", vmin=0, vmax=1, interpolation="nearest")
        for i in range(len(needle.lengths)):
            for j in range(len(needle.depths)):
                ink = "#ffffff" if needle.accuracy[i][j] > 0.6 else "#222222"
                axes.text(i, j, f"{needle.gain_bits[i][j]:+.1f}", ha="center", va="center", color=ink, fontsize=9)
        axes.set_xticks(range(len(needle.lengths)), [str(length) for length in needle.lengths])
        axes.set_yticks(range(len(needle.depths)), [f"{depth:.0%}" for depth in needle.depths])
        axes.set_xlabel(marked("length in tokens"))
        axes.set_ylabel(marked("depth of the needle"))
        figure.colorbar(image, ax=axes, pad=0.02).set_label(marked("exact answers"))
        return svg(figure, tr("Needle in a haystack"))


def cache_chart(cache_bytes: Mapping[str, float], chosen: str) -> str:
    """Cache bytes per token of the kinds of attention at the model's shape; its own is highlighted."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.7 + 0.42 * len(cache_bytes)), layout="constrained")
        axes = figure.subplots()
        names = list(cache_bytes)
        colours = [PALETTE[0] if name == chosen else "#94a3b8" for name in names]
        bars = axes.barh(names, list(cache_bytes.values()), color=colours)
        axes.bar_label(bars, [f"{value:,.0f}" for value in cache_bytes.values()], padding=4, color=INK)
        axes.invert_yaxis()
        axes.margins(x=0.14)
        axes.set_xlabel(marked("bytes per token, 16-bit numbers"))
        return svg(figure, tr("Cache bytes per token by kind of attention"))


def _lines(curves: Sequence[Curve], label: str, *, smooth: bool) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        axes = figure.subplots()
        unit, named = token_unit(max((x for curve in curves for x in curve.x), default=0.0))
        for index, curve in enumerate(curves[:MAX_LEGEND]):
            draw_line(axes, curve, PALETTE[index % len(PALETTE)], smooth=smooth, unit=unit)
        axes.set_xlabel(named)
        axes.set_ylabel(label)
        axes.grid(alpha=0.25, linewidth=0.5)
        if len(curves) > 1:
            figure.legend(loc="outside upper center", fontsize=9, ncols=min(len(curves), 5))
        return svg(figure, tr(label))


def draw_line(axes: Axes, curve: Curve, colour: str, *, smooth: bool, unit: float) -> None:
    """Draw a curve over multiples of ``unit``, with a running mean over it where it is long and ``smooth``."""
    x = [value / unit for value in curve.x]
    if not smooth or len(x) < 20:
        axes.plot(
            x,
            curve.y,
            color=colour,
            linewidth=1.6,
            marker="" if smooth else "o",
            markersize=3,
            label=plain(curve.name),
        )
        return
    axes.plot(x, curve.y, color=colour, linewidth=0.5, alpha=0.35)
    keep = min(0.9, 1 - 10 / len(x))  # a mean over few points must not lag behind them
    mean, smoothed = curve.y[0], []
    for value in curve.y:
        mean = keep * mean + (1 - keep) * value
        smoothed.append(mean)
    axes.plot(x, smoothed, color=colour, linewidth=1.8, label=plain(curve.name))


def token_unit(most: float) -> tuple[float, str]:
    """Return what an axis that ends at ``most`` tokens counts in, and its label."""
    return next((unit, label) for unit, label in TOKEN_UNITS if most >= unit or unit == 1)


def plain(name: str, most: int = MAX_LABEL) -> str:
    """Return a name from data as any font can show it: printable ASCII in one line, and no longer than fits.

    Matplotlib leaves what begins with an underscore out of legends.
    """
    shown = "".join(c if c.isascii() and c.isprintable() else "?" for c in name[: 4 * MAX_LABEL]).strip().lstrip("_")
    return (shown if len(shown) <= most else f"{shown[: most - 3]}...") or "source"


def svg(figure: Figure, title: str) -> str:
    """Return the figure as an <svg> element for inlining: no header, no metadata, no fixed size, no addresses."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head_end = text.index(">") + 1
    view = re.search(r'viewBox="[^"]+"', text[:head_end])
    body = text[head_end:].replace(INK, "currentColor")
    for label in {label for axes in figure.axes for label in (axes.get_xlabel(), axes.get_ylabel()) if label}:
        body = body.replace(f">{html.escape(label)}</text>", f">{html.escape(tr(label))}</text>")
    box = view.group(0) if view else ""
    return f'<svg {box} role="img" aria-label="{html.escape(title)}">{body.rstrip()}'
