"""Routers compared at equal active parameters on real text, after DeepSeekMoE's Table 1 and Switch's Tables 1 and 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fathom.progress import Progress
from fathom.study.plotting import PALETTE, grid, plot_style
from fathom.study.results import environment, markdown_table, mean_spread, write_results
from fathom.study.routers_data import standard_library
from fathom.study.routers_train import QUICK, StudyConfig, TrainingResult, train, variants

# DeepSeekMoE Table 1 (100B tokens) and Switch Tables 1 and 2 (100k steps of T5-Base's FLOPs, 128 experts).
PUBLISHED_LOSS = {"dense": 2.060, "hash": 1.932, "switch": 1.881, "gshard": 1.867, "deepseek-moe": 1.808}
PUBLISHED_CAPACITY = {
    "T5-Base, dense": {"-": -1.731},
    "Switch-Base": {"1.0": -1.561, "1.25": -1.553, "2.0": -1.554},
    "MoE-Base, top-2": {"1.0": -1.572, "1.25": -1.559, "2.0": -1.547},
}
PUBLISHED_PRECISION = {"float32": -1.718, "bfloat16": -3.780, "selective precision": -1.716}


def run(directory: Path, *, seed: int, quick: bool, progress: Progress) -> dict[str, Any]:
    """Train every variant from the same seeds on the same windows; the loss is of held-out files, nothing dropped."""
    sizes = QUICK if quick else StudyConfig()
    text, listed = standard_library(sizes.text_bytes), variants(sizes)
    total, done = len(listed) * sizes.repeats * sizes.steps, 0
    outcomes: dict[str, list[TrainingResult]] = {}
    for variant in listed:
        for repeat in range(sizes.repeats):

            def tick(name: str = variant.name) -> None:
                nonlocal done
                done += 1
                progress.update(done, total, "steps", phase=name)

            outcome = train(variant, sizes, text, seed=seed + repeat, tick=tick)
            outcomes.setdefault(variant.name, []).append(outcome)
    result = {
        "experiment": "routers",
        "seed": seed,
        "sizes": asdict(sizes),
        "text": {"train_bytes": text.train_N.numel(), "held_out_bytes": text.held_out_N.numel()},
        "environment": environment(),
        "outcomes": {name: [outcome.plain() for outcome in some] for name, some in outcomes.items()},
        "findings": findings(outcomes),
        "published": {
            "deepseek_moe_table_1_pile_loss": PUBLISHED_LOSS,
            "switch_table_1_negative_log_perplexity": PUBLISHED_CAPACITY,
            "switch_table_2_negative_log_perplexity": PUBLISHED_PRECISION,
        },
    }
    write_results(directory, result, table(outcomes, sizes), picture(outcomes))
    return result


def findings(outcomes: Mapping[str, Sequence[TrainingResult]]) -> dict[str, Any]:
    """What the figures say; ``better`` and ``worse`` than dense by more than any two seeds of one model differ."""
    means = {name: _mean([o.held_out for o in some]) for name, some in outcomes.items()}
    main = sorted(
        (name for name in means if "precision" not in name and "bfloat16" not in name), key=lambda name: means[name]
    )
    spread = max(max(o.held_out for o in some) - min(o.held_out for o in some) for some in outcomes.values())
    return {
        "order": main,
        "largest_difference_between_seeds": spread,
        "better_than_dense": [name for name in main if means[name] < means["dense"] - spread],
        "worse_than_dense": [name for name in main if means[name] > means["dense"] + spread],
        "bfloat16_router_minus_selective": means["switch, bfloat16 router"] - means["switch, selective precision"],
        "selective_minus_float32": means["switch, selective precision"] - means["switch, capacity 1.25"],
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def conclusion(outcomes: Mapping[str, Sequence[TrainingResult]], sizes: StudyConfig) -> str:
    """What this run shows, for and against the papers."""
    found = findings(outcomes)
    better, worse = (", ".join(found[key]) or "none" for key in ("better_than_dense", "worse_than_dense"))
    tokens = sizes.steps * sizes.batch * sizes.length
    return " ".join(
        (
            f"From best to worst: {' < '.join(found['order'])}. Two seeds of one model differ by up to "
            f"{found['largest_difference_between_seeds']:.3f}; by more than that, better than dense: {better}; worse "
            f"than dense: {worse}.",
            f"The papers' order is that of 100B tokens. After {tokens / 1e6:.1f}M bytes a learned router has had "
            "little time to find what to divide, and an expert has seen an eighth of the bytes that a dense layer has; "
            "a hash needs no finding, and one expert a byte is a table of what follows it.",
            f"The bfloat16 router ends {found['bfloat16_router_minus_selective']:+.3f} from selective precision: a "
            "model as small as this one does not diverge by its router, and Switch's Table 2 is not reproduced here.",
        )
    )


def table(outcomes: Mapping[str, Sequence[TrainingResult]], sizes: StudyConfig) -> str:
    """Measured first, published after, and what may be concluded."""
    rows = [_row(name, some) for name, some in outcomes.items()]
    head = ("router", "total / active", "held-out nats", "load entropy", "busiest / mean", "dropped %", "bytes/s")
    return "\n\n".join(
        (
            "# Routers at equal active parameters",
            f"Measured here: byte-level decoders of {sizes.layers} layers, {sizes.steps} steps of "
            f"{sizes.batch * sizes.length} bytes of Python's standard library, {sizes.repeats} seed(s). Every token "
            "meets experts of the same total width; all mixtures have eight times that in all. Load, drops and speed "
            "are those of training; held-out files are read without dropping.",
            markdown_table(head, rows),
            conclusion(outcomes, sizes),
            "## Published, at other sizes on other data",
            "DeepSeekMoE Table 1, Pile loss after 100B tokens (2.0B parameters; dense 0.2B; GShard and DeepSeekMoE "
            "activate half again as much as Switch):",
            markdown_table(("router", "loss"), [(name, f"{loss:.3f}") for name, loss in PUBLISHED_LOSS.items()]),
            "Switch Table 1, negative log perplexity after 100k steps, by capacity factor:",
            markdown_table(
                ("model", "factor", "neg. log perplexity"),
                [(m, factor, f"{v:.3f}") for m, some in PUBLISHED_CAPACITY.items() for factor, v in some.items()],
            ),
            "Switch Table 2, by the router's precision (bfloat16 diverged):",
            markdown_table(
                ("precision", "neg. log perplexity"), [(name, f"{v:.3f}") for name, v in PUBLISHED_PRECISION.items()]
            ),
        )
    )


def _row(name: str, some: Sequence[TrainingResult]) -> list[str]:
    first = some[0]
    return [
        name,
        f"{first.total / 1e6:.2f}M / {first.active / 1e6:.2f}M",
        mean_spread([o.held_out for o in some], 3),
        mean_spread([o.load_entropy for o in some if o.load_entropy is not None], 3),
        mean_spread([o.load_peak for o in some if o.load_peak is not None], 2),
        mean_spread([100 * o.dropped for o in some if o.dropped is not None], 1),
        f"{_mean([o.tokens_per_second for o in some]):,.0f}",
    ]


def picture(outcomes: Mapping[str, Sequence[TrainingResult]]) -> Figure:
    """Training loss of the first seed, and what each router drops against how evenly it loads."""
    with plot_style():
        figure = Figure(figsize=(9.2, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
        for place, (name, some) in enumerate(outcomes.items()):
            colour = PALETTE[place % len(PALETTE)]
            style = "--" if "precision" in name or "bfloat16" in name else "-"
            steps, losses = zip(*some[0].curve, strict=True)
            left.plot(steps, losses, color=colour, linewidth=1.2, linestyle=style, label=name)
            for outcome in some:
                if outcome.load_entropy is not None:
                    right.plot(outcome.load_entropy, 100 * (outcome.dropped or 0.0), "o", color=colour, markersize=5)
        left.set(xlabel="step", ylabel="training loss (nats per byte)", title="Equal active parameters")
        left.legend()
        right.set(xlabel="load entropy (1 is even)", ylabel="dropped in training (%)", title="Load and overflow")
        for axes in (left, right):
            grid(axes)
        return figure
