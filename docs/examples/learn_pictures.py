"""Draw the pictures of docs/learn.md into docs/learn: `python docs/examples/learn_pictures.py`."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from fathom.families import preset
from fathom.model.moe import MoELayer
from fathom.plan.cache import with_attention
from fathom.spec import MixtureOfExperts
from fathom.study.plotting import PALETTE, grid, plot_style

PLACE = Path(__file__).parents[1] / "learn"
BLUE, ORANGE, GREEN, VIOLET = PALETTE[:4]
GREY = "#94a3b8"


def box(axes: Axes, place: tuple[float, float], size: tuple[float, float], colour: str, text: str = "") -> None:
    axes.add_patch(Rectangle(place, *size, facecolor=colour, edgecolor="white", linewidth=0.8))
    if text:
        middle = (place[0] + size[0] / 2, place[1] + size[1] / 2)
        axes.text(*middle, text, ha="center", va="center", color="white", fontsize=8)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = GREY) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color=colour, linewidth=1))


def blank(axes: Axes, width: float, height: float) -> None:
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_aspect("equal")
    axes.axis("off")


def caches() -> Figure:
    """Eight query heads and what is cached for them, with the numbers of V2's own shape."""
    v2 = preset("deepseek-v2")
    figure, panels = plt.subplots(1, 4, figsize=(10, 3.1), layout="constrained")
    for axes, (name, kept) in zip(panels.flat, (("MHA", 8), ("GQA", 2), ("MQA", 1), ("MLA", 0))):
        blank(axes, 8.4, 6)
        for head in range(8):
            box(axes, (0.2 + head, 3.9), (0.85, 0.9), BLUE)
        if name == "MLA":
            box(axes, (1.3, 0.9), (4.4, 0.9), GREEN, "latent  C")
            box(axes, (5.9, 0.9), (0.85, 0.9), ORANGE, "R")
            numbers = v2.attention.cache_numbers_per_token
        else:
            for head in range(kept):
                middle = 0.2 + (head + 0.5) * 8 / kept - 0.07
                box(axes, (middle - 0.42, 1.5), (0.85, 0.75), GREEN, "k")
                box(axes, (middle - 0.42, 0.65), (0.85, 0.75), VIOLET, "v")
            heads = {"MHA": v2.attention.num_heads, "GQA": 8, "MQA": 1}[name]
            numbers = with_attention(v2, heads).attention.cache_numbers_per_token
        for head in range(8):
            top, bottom = (0.62 + head, 3.85), (0.2 + (int(head * kept / 8) + 0.5) * 8 / max(kept, 1) - 0.07, 2.3)
            arrow(axes, (3.5 + (head - 3.5) * 0.5, 1.85) if name == "MLA" else bottom, top)
        axes.set_title(f"{name}: {numbers:,} numbers")
    panels.flat[0].text(4.2, 5.1, "queries of 8 heads", ha="center", color=BLUE)
    panels.flat[0].text(4.2, 0.05, "cached", ha="center", color=GREEN)
    panels.flat[3].text(4.2, 0.05, "cached; R is the rotary key", ha="center", color=GREEN)
    panels.flat[3].text(4.2, 5.1, "kv_b_proj makes k and v from it", ha="center", color="#475569")
    figure.suptitle(
        "What the cache holds per token and layer; numbers at V2's shape: 128 heads of width 128 (GQA: 8 for k and v)"
    )
    return figure


def forms() -> Figure:
    """The two orders of the same products."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    titles = ("expanded: keys and values once for each of S tokens", "absorbed: once for each of T queries")
    texts = (
        (
            *("q_nope  H x P", "cached latent  C", "k_nope  H x P\nkey_up latent", "v  H x U\nvalue_up latent"),
            *("scores  H", "out  H x U"),
        ),
        (
            *("q_nope  H x P", "q_latent  H x C\nkey_up^T q_nope", "cached latent  C", "scores  H"),
            *("mixed  H x C\nweights latent", "out  H x U\nvalue_up mixed"),
        ),
    )
    colours = ((BLUE, GREEN, VIOLET, VIOLET, ORANGE, BLUE), (BLUE, VIOLET, GREEN, ORANGE, ORANGE, BLUE))
    size = (3.4, 0.9)
    places = (
        ((0.3, 4.6), (6.2, 0.3), (3.9, 2.45), (8.0, 2.45), (3.9, 4.6), (8.0, 4.6)),
        ((0.3, 4.6), (0.3, 2.45), (6.2, 0.3), (4.15, 2.45), (8.0, 2.45), (8.0, 4.6)),
    )
    arrows = (((0, 4), (1, 2), (1, 3), (2, 4), (3, 5), (4, 5)), ((0, 1), (1, 3), (2, 3), (3, 4), (2, 4), (4, 5)))
    for number, axes in enumerate(panels.flat):
        blank(axes, 11.7, 5.7)
        for place, colour, text in zip(places[number], colours[number], texts[number]):
            box(axes, place, size, colour, text)
        for start, end in arrows[number]:
            arrow(axes, *joined(places[number][start], places[number][end], size), "#475569")
        axes.set_title(titles[number])
    figure.suptitle("The same sum in two orders; rotary scores are added in both and left out here")
    return figure


def joined(
    start: tuple[float, float], end: tuple[float, float], size: tuple[float, float]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return where an arrow leaves one box and reaches another."""
    width, height = size
    if abs(start[1] - end[1]) < 0.1:
        return (start[0] + width, start[1] + height / 2), (end[0], end[1] + height / 2)
    up = end[1] > start[1]
    return (start[0] + width / 2, start[1] + up * height), (end[0] + width / 2, end[1] + (not up) * height)


def routing() -> Figure:
    """The scores of one token, and what is done with the best of them."""
    torch.manual_seed(0)
    layer = MoELayer(
        64, MixtureOfExperts(n_routed_experts=16, num_experts_per_tok=4, moe_intermediate_size=32, n_shared_experts=1)
    ).requires_grad_(False)
    _, routed = layer(torch.randn(1, 1, 64))
    scores_E, chosen_K = routed.scores_BTE[0, 0], routed.indices_BTK[0, 0].tolist()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), width_ratios=(3, 2), layout="constrained")
    left.bar(range(16), scores_E, color=[ORANGE if e in chosen_K else GREY for e in range(16)])
    left.set_xticks(range(16))
    left.set_xlabel("routed expert")
    left.set_ylabel("score: softmax of 16 logits")
    left.set_title("score all, select the K = 4 best")
    grid(left)
    blank(right, 10, 6.4)
    box(right, (0.2, 2.6), (1.2, 0.9), BLUE, "x  D")
    for place, expert in enumerate(chosen_K):
        height = 4.9 - 1.15 * place
        box(right, (3.4, height), (2.6, 0.85), ORANGE, f"expert {expert}")
        arrow(right, (1.45, 3.05), (3.35, height + 0.42))
        arrow(right, (6.05, height + 0.42), (8.35, 3.05))
        right.text(6.15, height + 0.62, f"x {scores_E[expert]:.2f}", color="#475569", fontsize=8)
    box(right, (3.4, 0.2), (2.6, 0.85), GREEN, "shared expert")
    arrow(right, (1.45, 3.05), (3.35, 0.62))
    arrow(right, (6.05, 0.62), (8.35, 3.05))
    right.text(6.15, 0.3, "x 1", color="#475569", fontsize=8)
    box(right, (8.4, 2.6), (1.2, 0.9), BLUE, "sum  D")
    right.set_title("weigh by the scores, add the shared expert")
    return figure


def loads() -> Figure:
    """The experts' shares of the tokens, step by step, from what learn_balance.py kept."""
    kept = json.loads((PLACE / "loads.json").read_text(encoding="utf-8"))
    figure, panels = plt.subplots(1, len(kept), figsize=(10, 3.2), sharey=True, layout="constrained")
    for axes, (name, shares) in zip(panels.flat, kept.items()):
        load_ET = torch.tensor(shares).T * len(shares[0])
        image = axes.imshow(load_ET, aspect="auto", cmap="viridis", vmin=0, vmax=4, interpolation="nearest")
        axes.set_title(name)
        axes.set_xlabel("step")
    panels.flat[0].set_ylabel("expert")
    figure.colorbar(image, ax=panels, label="load over the mean load")
    return figure


if __name__ == "__main__":
    with plot_style():
        plt.rcParams["svg.hashsalt"] = "fathom"
        for draw in (caches, forms, routing, loads):
            figure = draw()
            figure.savefig(PLACE / f"{draw.__name__}.svg", metadata={"Date": None}, facecolor="white")
