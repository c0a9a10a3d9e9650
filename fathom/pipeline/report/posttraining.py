"""Gather what the steps after pretraining left: scores on tasks, answers, and curves of learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fathom.inference.run_record import read_json
from fathom.pipeline.report.data import Change, Curve, ExampleAnswer, ExampleProblem, OnlineCurves, TaskScore
from fathom.spec.recipe import DistillStep, GrpoStep, SftStep, Step, TasksStep
from fathom.spec.step_results import result_name
from fathom.train.metrics import read_json_lines

METRICS = "metrics.jsonl"
PANELS: Mapping[str, Mapping[str, str]] = {
    "mean of a rollout": {"reward": "reward", "accuracy": "accuracy", "step_score": "step"},
    "tokens per answer": {"length": "all", "length_right": "right", "length_wrong": "wrong"},
    "entropy (nats)": {"entropy": "all", "entropy_right": "right", "entropy_wrong": "wrong"},
}
"""Axis label -> field of a rollout's line -> name of its curve."""


def task_scores(before: Sequence[Step], directory: Path) -> dict[str, dict[str, TaskScore]]:
    """Merge all tasks steps: task -> stage -> score; of a stage measured twice on a task the later one counts.

    Stages stand in the recipe's order.
    """
    order = [step.name for step in before]
    found: dict[str, dict[str, TaskScore]] = {}
    for document in _documents(before, directory):
        for task, stages in document["tasks"].items():
            found.setdefault(task, {}).update({stage: _score(values) for stage, values in stages.items()})
    return {task: dict(sorted(stages.items(), key=lambda item: order.index(item[0]))) for task, stages in found.items()}


def example_problems(before: Sequence[Step], directory: Path) -> list[ExampleProblem]:
    """Return the example problems of all tasks steps, by task; answers to one problem stand together.

    Stages stand in the recipe's order.
    """
    order = [step.name for step in before]
    problems: dict[tuple[str, str], dict[str, Any]] = {}
    for document in _documents(before, directory):
        for task, examples in document["examples"].items():
            for example in examples:
                merged = problems.setdefault((task, example["id"]), {**example, "answers": {}})
                merged["answers"].update(example["answers"])
    tasks = list(dict.fromkeys(task for task, _ in problems))
    return [_problem(task, problem, order) for task in tasks for (of, _), problem in problems.items() if of == task]


def sft_loss_curves(before: Sequence[Step], directory: Path) -> list[Curve]:
    """Return the loss of every SFT step over its own tokens."""
    curves = []
    for step in before:
        if not isinstance(step, SftStep):
            continue
        rows = [row for row in _metrics(step, directory) if row.get("lm_loss") is not None]
        if rows:
            curves.append(Curve(name=step.name, x=[r["tokens"] for r in rows], y=[r["lm_loss"] for r in rows]))
    return curves


def online_curves(before: Sequence[Step], directory: Path) -> list[OnlineCurves]:
    """Return reward, accuracy, length and entropy over the steps of every GRPO and distillation step."""
    found = []
    for step in before:
        if not isinstance(step, GrpoStep | DistillStep):
            continue
        rows = _metrics(step, directory)
        panels = {label: _curves(rows, names) for label, names in PANELS.items()}
        kept = {label: curves for label, curves in panels.items() if curves}
        if kept:
            found.append(OnlineCurves(name=step.name, panels=kept))
    return found


def _documents(before: Sequence[Step], directory: Path) -> list[Any]:
    paths = [directory / result_name(step) for step in before if isinstance(step, TasksStep)]
    return [read_json(path) for path in paths if path.exists()]


def _metrics(step: Step, directory: Path) -> list[dict[str, Any]]:
    return read_json_lines(directory / step.name / METRICS)


def _score(values: Mapping[str, Any]) -> TaskScore:
    change = values.get("change")
    return TaskScore(
        accuracy=values["accuracy"],
        low=values["low"],
        high=values["high"],
        n=values["n"],
        tokens=values["tokens"],
        finished=values["finished"],
        more={name: estimate["value"] for name, estimate in values.items() if "@" in name},
        change=None
        if change is None
        else Change(**{name: change[name] for name in ("before", "value", "low", "high")}),
    )


def _problem(task: str, problem: Mapping[str, Any], order: Sequence[str]) -> ExampleProblem:
    answers = sorted(problem["answers"].items(), key=lambda item: order.index(item[0]))
    return ExampleProblem(
        task=task,
        question=problem["question"],
        expected=problem["expected"],
        answers=[
            ExampleAnswer(stage=stage, text=answer["text"], correct=answer["correct"], finished=answer["finished"])
            for stage, answer in answers
        ],
    )


def _curves(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[Curve]:
    curves = []
    for field, name in names.items():
        kept = [row for row in rows if row.get(field) is not None]
        if kept:
            curves.append(Curve(name=name, x=[row["step"] for row in kept], y=[row[field] for row in kept]))
    return curves
