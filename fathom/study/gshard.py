"""GShard: one encoder-decoder for many languages, dense and with top-2 experts in every other layer (GShard §2, §4).

The paper's claims at the size of a minute: at equal FLOPs per token a mixture of experts translates better than a dense
model, and without the auxiliary loss few experts take the load. Switch's router runs in the same model beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fathom.progress import Progress
from fathom.study.gshard_train import QUICK, StudyConfig, TrainingResult, train, variants
from fathom.study.plotting import PALETTE, grid, plot_style
from fathom.study.results import environment, markdown_table, write_results

# GShard Table 1: experts per layer, layers, weights, average BLEU over 100 languages to English.
PUBLISHED = (
    ("128", "12", "12.5B", "36.7"),
    ("512", "12", "50B", "40.0"),
    ("2048", "12", "200B", "41.3"),
    ("128", "36", "37B", "39.0"),
    ("512", "36", "150B", "43.7"),
    ("2048", "36", "600B", "44.3"),
)
DENSE_96_LAYERS = 30.8 + 6.1


def run(directory: Path, *, seed: int, quick: bool, progress: Progress) -> dict[str, Any]:
    """Train every variant on the same sentences, and write table and picture."""
    sizes = QUICK if quick else StudyConfig()
    listed = variants(sizes)
    total, done = len(listed) * sizes.steps, 0
    outcomes: dict[str, TrainingResult] = {}
    for name, spec in listed.items():

        def tick(stage: str = name) -> None:
            nonlocal done
            done += 1
            progress.update(done, total, "steps", phase=stage)

        outcomes[name] = train(spec, sizes, seed=seed, tick=tick)
    result = {
        "experiment": "gshard",
        "seed": seed,
        "sizes": asdict(sizes),
        "environment": environment(),
        "outcomes": {name: outcome.plain() for name, outcome in outcomes.items()},
        "published_bleu": [list(row) for row in PUBLISHED],
    }
    write_results(directory, result, table(outcomes, sizes), picture(outcomes))
    return result


def table(outcomes: Mapping[str, TrainingResult], sizes: StudyConfig) -> str:
    """Measured first, published after, and what may be concluded."""
    head = (
        "model",
        "weights",
        "MFLOP/token",
        "held-out nats",
        "words %",
        "load entropy",
        "busiest / mean",
        "dropped %",
    )
    return "\n\n".join(
        (
            "# GShard's encoder-decoder on many languages",
            f"Measured here: {sizes.task.languages} languages of {sizes.task.parts * sizes.task.words} words, "
            f"{sizes.experts} experts in every other layer, {sizes.steps} steps of {sizes.batch} sentences, one seed. "
            "Load is that of held-out sentences, drops are those of training. The task is learned from nothing and "
            "judged before it is learned to the end.",
            markdown_table(head, [_row(name, outcome) for name, outcome in outcomes.items()]),
            conclusion(outcomes),
            "## Published, at other sizes on other data",
            "GShard Table 1: average BLEU over 100 languages. The dense model of 96 layers and 2.3B weights reaches "
            f"{DENSE_96_LAYERS:.1f}.",
            markdown_table(("experts", "layers", "weights", "BLEU"), PUBLISHED),
        )
    )


def conclusion(outcomes: Mapping[str, TrainingResult]) -> str:
    """What this run shows, for and against the paper."""
    dense, gshard, bare = outcomes["dense"], outcomes["gshard"], outcomes["gshard, no aux loss"]
    verdict = "below" if gshard.loss < dense.loss else "not below"
    lines = [
        f"At equal FLOPs GShard's loss, {gshard.loss:.3f}, is {verdict} the dense model's, {dense.loss:.3f}.",
        f"The auxiliary loss brings the load entropy from {bare.load_entropy or 0:.3f} to "
        f"{gshard.load_entropy or 0:.3f}, the busiest expert from {bare.load_peak or 0:.1f} to "
        f"{gshard.load_peak or 0:.1f} times the mean, and what is dropped from {100 * (bare.dropped or 0):.0f} to "
        f"{100 * (gshard.dropped or 0):.0f} per cent.",
    ]
    return " ".join(lines)


def _row(name: str, outcome: TrainingResult) -> list[str]:
    def shown(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    return [
        name,
        f"{outcome.parameters / 1e6:.2f}M",
        f"{outcome.flops_per_token / 1e6:.2f}",
        f"{outcome.loss:.3f}",
        f"{100 * outcome.words_right:.1f}",
        shown(outcome.load_entropy, 3),
        shown(outcome.load_peak, 2),
        shown(None if outcome.dropped is None else 100 * outcome.dropped, 1),
    ]


def picture(outcomes: Mapping[str, TrainingResult]) -> Figure:
    """Held-out loss over steps, the load of each expert, and which languages an expert serves."""
    with plot_style():
        figure = Figure(figsize=(10.4, 3.4), layout="constrained")
        curves, loads, languages = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
        for place, (name, outcome) in enumerate(outcomes.items()):
            steps, losses = zip(*outcome.curve, strict=True)
            curves.plot(steps, losses, color=PALETTE[place], linewidth=1.4, label=name)
            if outcome.shares:
                shares = sorted(outcome.shares[-1], reverse=True)
                loads.plot(
                    range(1, len(shares) + 1),
                    [share * len(shares) for share in shares],
                    color=PALETTE[place],
                    marker="o",
                    markersize=3,
                    linewidth=1.2,
                )
        curves.set(xlabel="step", ylabel="held-out loss (nats per token)", title="Equal FLOPs per token")
        curves.legend()
        loads.set(xlabel="expert, busiest first", ylabel="load / mean", title="Load, decoder's last mixture")
        _heat(languages, outcomes["gshard"])
        for axes in (curves, loads):
            grid(axes)
        return figure


def _heat(axes: Axes, outcome: TrainingResult) -> None:
    axes.imshow(outcome.languages_per_expert, aspect="auto", cmap="Blues", vmin=0)
    axes.set(xlabel="expert", ylabel="language", title="First choices, GShard's decoder")
