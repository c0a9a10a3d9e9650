"""Gather what the steps after pretraining left: scores on tasks, answers, and curves of learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fathom.inference.run_record import as_written, read_json
from fathom.locale import marked
from fathom.pipeline.report.data import (
    VALIDATION,
    Change,
    Curve,
    ExampleAnswer,
    ExampleProblem,
    StepCurves,
    TaskScore,
)
from fathom.pipeline.report.records import HELD_OUT_LOSS, curve_of, names, number, rows_of, text, with_evaluation
from fathom.spec.recipe import DistillStep, DpoStep, GrpoStep, SftStep, Step, TasksStep
from fathom.spec.step_results import result_name
from fathom.train.record import METRICS

T = TypeVar("T")
PANELS: Mapping[str, Mapping[str, str]] = {
    marked("mean of a rollout"): {"reward": "reward", "accuracy": "accuracy", "step_score": "step"},
    marked("tokens per answer"): {"length": "all", "length_right": "right", "length_wrong": "wrong"},
    marked("entropy (nats)"): {"entropy": "all", "entropy_right": "right", "entropy_wrong": "wrong"},
}
"""Axis label -> field of a rollout's line -> name of its curve."""
PREFERENCE_PANELS: Mapping[str, Mapping[str, str]] = {
    marked("loss"): {"lm_loss": "training", HELD_OUT_LOSS: "validation"},
    marked("implied reward"): {"chosen_reward": "better answer", "rejected_reward": "worse answer", "margin": "margin"},
    marked("accuracy"): {"accuracy": "training", "evaluation.accuracy": "validation"},
}
"""Axis label -> field of a line of a dpo step -> name of its curve."""


def task_scores(before: Sequence[Step], directory: Path) -> dict[str, dict[str, TaskScore]]:
    """Merge all tasks steps: task -> stage -> score; of a stage measured twice on a task the later one counts.

    Stages stand in the recipe's order.
    """
    order = [step.name for step in before]
    found: dict[str, dict[str, TaskScore]] = {}
    for path in _results(before, directory):
        document = read_json(path)
        with as_written(path):
            for task, stages in names(document["tasks"]).items():
                scores = {stage: _score(values) for stage, values in names(stages).items()}
                found.setdefault(task, {}).update(_in_order(scores, order))
    return {task: _in_order(stages, order) for task, stages in found.items()}


def example_problems(before: Sequence[Step], directory: Path) -> list[ExampleProblem]:
    """Return the example problems of all tasks steps, by task; answers to one problem stand together.

    Stages stand in the recipe's order.
    """
    order = [step.name for step in before]
    asked: dict[tuple[str, str], tuple[str, str]] = {}
    answers: dict[tuple[str, str], dict[str, ExampleAnswer]] = {}
    for path in _results(before, directory):
        document = read_json(path)
        with as_written(path):
            for task, examples in document["examples"].items():
                for example in examples:
                    key = text(task), text(example["id"])
                    asked.setdefault(key, (text(example["question"]), text(example["expected"])))
                    found = {stage: _answer(stage, answer) for stage, answer in example["answers"].items()}
                    answers.setdefault(key, {}).update(_in_order(found, order))
    tasks = list(dict.fromkeys(task for task, _ in asked))
    return [
        ExampleProblem(
            task=task,
            question=asked[task, name][0],
            expected=asked[task, name][1],
            answers=list(_in_order(answers[task, name], order).values()),
        )
        for task, name in sorted(asked, key=lambda key: tasks.index(key[0]))
    ]


def sft_loss_curves(before: Sequence[Step], directory: Path) -> list[Curve]:
    """Return the loss of every SFT step over its own tokens, and that of what it holds out."""
    steps = [step for step in before if isinstance(step, SftStep)]
    found = {
        step.name: rows_of(directory / step.name / METRICS, ("step", "tokens"), optional=("lm_loss",)) for step in steps
    }
    curves = []
    for name, rows in found.items():
        curves.append(curve_of(name, rows, "lm_loss", over="tokens"))
        curves.append(curve_of(name + VALIDATION, with_evaluation(rows), HELD_OUT_LOSS, over="tokens"))
    return [curve for curve in curves if curve.x]


def online_curves(before: Sequence[Step], directory: Path) -> list[StepCurves]:
    """Return reward, accuracy, length and entropy over the steps of every GRPO and distillation step."""
    found = []
    for step in before:
        if not isinstance(step, GrpoStep | DistillStep):
            continue
        rows = rows_of(directory / step.name / METRICS, ("step",), optional=_fields(PANELS))
        found += _step_curves(step.name, rows, PANELS)
    return found


def preference_curves(before: Sequence[Step], directory: Path) -> list[StepCurves]:
    """Return loss, implied rewards and accuracy over the steps of every DPO step."""
    found = []
    for step in before:
        if not isinstance(step, DpoStep):
            continue
        rows = rows_of(directory / step.name / METRICS, ("step",), optional=_fields(PREFERENCE_PANELS))
        found += _step_curves(step.name, with_evaluation(rows), PREFERENCE_PANELS)
    return found


def _fields(panels: Mapping[str, Mapping[str, str]]) -> list[str]:
    return [field for panel in panels.values() for field in panel]


def _step_curves(
    name: str, rows: Sequence[Mapping[str, Any]], panels: Mapping[str, Mapping[str, str]]
) -> list[StepCurves]:
    """Return the panels of a step that have a curve, as one picture; none where no panel has."""
    drawn = {label: _curves(rows, panel) for label, panel in panels.items()}
    kept = {label: curves for label, curves in drawn.items() if curves}
    return [StepCurves(name=name, panels=kept)] if kept else []


def _curves(rows: Sequence[Mapping[str, Any]], panel: Mapping[str, str]) -> list[Curve]:
    curves = [curve_of(name, rows, field, over="step") for field, name in panel.items()]
    return [curve for curve in curves if curve.x]


def _results(before: Sequence[Step], directory: Path) -> list[Path]:
    paths = [directory / result_name(step) for step in before if isinstance(step, TasksStep)]
    return [path for path in paths if path.exists()]


def _in_order(stages: Mapping[str, T], order: Sequence[str]) -> dict[str, T]:
    """Return stages in the recipe's order; ``ValueError`` for one that it does not have."""
    return {stage: stages[stage] for stage in sorted(stages, key=order.index)}


def _score(values: Mapping[str, Any]) -> TaskScore:
    change = values.get("change")
    parts = ("value", "low", "high")
    return TaskScore(
        accuracy=number(values["accuracy"]),
        low=number(values["low"]),
        high=number(values["high"]),
        n=int(number(values["n"])),
        tokens=number(values["tokens"]),
        finished=number(values["finished"]),
        more={name: number(estimate["value"]) for name, estimate in values.items() if "@" in name},
        change=None
        if change is None
        else Change(before=text(change["before"]), **{part: number(change[part]) for part in parts}),
    )


def _answer(stage: str, answer: Mapping[str, Any]) -> ExampleAnswer:
    correct, finished = bool(answer["correct"]), bool(answer["finished"])
    return ExampleAnswer(stage=stage, text=text(answer["text"]), correct=correct, finished=finished)
