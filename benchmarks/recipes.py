"""What the recipes reach: runs of one recipe with several seeds, their accuracies on tasks and curves of learning.

    python -m benchmarks.recipes recipes/quickstart.toml --seeds 1 2 3
    python -m benchmarks.recipes recipes/smollm2.toml --runs runs/smollm2

The first trains (an existing run is resumed), the second only collects. A seed is every training
step's: weights, order of the data, problems drawn and answers sampled; held-out problems are the same. Result and
picture are named after the recipe. ``change`` is a task's rise over the stage before, on the same problems.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import peers
from fathom.inference.run_record import read_json, read_recipe, read_state
from fathom.pipeline.recipe import load_run_plan
from fathom.spec.recipe import DistillStep, GrpoStep, SftStep, TasksStep, TrainStep
from fathom.spec.step_results import result_name
from fathom.study.plotting import PALETTE, plot_style
from fathom.train.metrics import read_json_lines

CURVES = ("reward", "accuracy", "length", "length_right", "length_wrong", "entropy", "zero_variance")
SCORE = ("accuracy", "low", "high", "n", "samples", "tokens", "change", "pass@4", "majority@4")
PANELS = (("accuracy", "right answers while sampling, %", 100.0), ("length", "tokens per answer", 1.0))


def train(recipe: Path, out: Path, seed: int, overrides: Sequence[str]) -> Path:
    """Run a recipe with one seed for all of its steps that learn."""
    fields = {TrainStep: "train", SftStep: "train", GrpoStep: "policy", DistillStep: "policy"}
    seeds = [
        f"{step.name}.{fields[type(step)]}.seed={seed}"
        for step in load_run_plan(recipe, overrides=overrides).recipe.steps
        if type(step) in fields
    ]
    settings = [part for override in (*overrides, *seeds) for part in ("--set", override)]
    fathom = Path(sys.executable).with_name("fathom")
    subprocess.run([fathom, "train", recipe, "--out", out, "--resume", *settings], check=True)
    return out


def collect(directory: Path) -> dict[str, Any]:
    """Read what a finished run left."""
    recipe = read_recipe(directory)
    tasks: dict[str, dict[str, Any]] = {}
    policies = {}
    for step in recipe.steps:
        if isinstance(step, TasksStep):
            for task, stages in read_json(directory / result_name(step))["tasks"].items():
                tasks.setdefault(task, {}).update(stages)
        if isinstance(step, GrpoStep | DistillStep):
            rows = read_json_lines(directory / step.name / "metrics.jsonl")
            curves = {name: [row[name] for row in rows if row.get(name) is not None] for name in CURVES}
            policies[step.name] = {
                "seed": step.policy.seed,
                "rollouts": len(rows),
                "seconds": round(sum(row["rollout_seconds"] + row["update_seconds"] for row in rows), 1),
                "largest_logprob_difference": max((row.get("logprob_difference", 0.0) for row in rows), default=0.0),
                "curves": {name: [round(value, 4) for value in curve] for name, curve in curves.items() if curve},
            }
    return {
        "seconds": {name: round(state.seconds, 1) for name, state in read_state(directory).items()},
        "tasks": {
            task: {stage: {name: score[name] for name in SCORE if name in score} for stage, score in stages.items()}
            for task, stages in tasks.items()
        },
        "policies": policies,
    }


def rises(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Return task -> stage -> the change over the stage before it in every run, in points."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for task, stages in run["tasks"].items():
            for stage, score in stages.items():
                if score.get("change"):
                    found.setdefault(task, {}).setdefault(stage, []).append(round(100 * score["change"]["value"], 1))
    return found


def picture(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw accuracy by task and stage, a bar a run with its interval, above what the policies saw of their answers."""
    tasks = list(runs[0]["tasks"])
    names = [name for name in runs[0]["policies"] if runs[0]["policies"][name]["curves"]]
    with plot_style():
        figure = Figure(figsize=(8, 2.6 * (1 + len(names))), layout="constrained", dpi=130)
        grid = figure.add_gridspec(1 + len(names), 1)
        bars(figure.add_subplot(grid[0, 0]), runs, tasks)
        for row, name in enumerate(names, start=1):
            panels = [panel for panel in PANELS if panel[0] in runs[0]["policies"][name]["curves"]]
            cells = grid[row, 0].subgridspec(1, len(panels))
            for column, panel in enumerate(panels):
                curves(figure.add_subplot(cells[0, column]), runs, name, *panel)
        figure.savefig(path)


def curves(axes: Any, runs: Sequence[Mapping[str, Any]], name: str, field: str, label: str, scale: float) -> None:
    """Draw what a policy measured at every rollout, a line a run."""
    for number, run in enumerate(runs, start=1):
        curve = [scale * value for value in run["policies"][name]["curves"][field]]
        axes.plot(range(1, len(curve) + 1), curve, linewidth=1.2, label=f"run {number}")
    axes.set_xlabel(f"rollout of {name}")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    if len(runs) > 1:
        axes.legend()


def bars(axes: Any, runs: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> None:
    """Draw a group of bars a task: the stages side by side, each with one bar a run."""
    stages = list(dict.fromkeys(stage for task in tasks for stage in runs[0]["tasks"][task]))
    width = 0.8 / (len(stages) * len(runs))
    for number, stage in enumerate(stages):
        for index, run in enumerate(runs):
            scores = [(place, run["tasks"][task].get(stage)) for place, task in enumerate(tasks)]
            for place, score in scores:
                if score is None:
                    continue
                x = place - 0.4 + width * (number * len(runs) + index + 0.5)
                value, low, high = (100 * score[name] for name in ("accuracy", "low", "high"))
                axes.bar(x, value, 0.9 * width, color=PALETTE[number % len(PALETTE)])
                reach = [[max(0.0, value - low)], [max(0.0, high - value)]]  # rounding may leave less than nothing
                axes.errorbar(x, value, yerr=reach, color="black", linewidth=0.8, capsize=1.5)
        axes.bar(0, 0, 0, color=PALETTE[number % len(PALETTE)], label=stage)
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set_ylim(0, 100)
    axes.set_ylabel("held-out problems right, %")
    axes.legend(frameon=False, ncols=len(stages), loc="upper left", bbox_to_anchor=(0, 1.15))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--runs", type=Path, nargs="+", help="collect these runs instead of training")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="as fathom train takes it")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    name = a.recipe.stem
    directories = a.runs or [train(a.recipe, a.out / f"{name}-seed{seed}", seed, a.overrides) for seed in a.seeds]
    runs = [collect(directory) for directory in directories]
    result = {"benchmark": f"recipe-{name}", "machine": peers.machine(), "rises": rises(runs), "runs": runs}
    (a.out / f"recipe-{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    picture(runs, a.out / f"recipe-{name}.png")
    print(json.dumps(result["rises"], indent=1))


if __name__ == "__main__":
    main()
