"""The tasks step: accuracy on held-out problems, of every stage it names.

Beside the result, a folder of the step's name keeps every answer with its verdict, a file for each stage and task:
what is there, of the same model and the same problems, is not measured again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from fathom.checkpoint.store import MANIFEST
from fathom.errors import CheckpointError, SpecError
from fathom.files import sha256, write_json
from fathom.inference.answer_sampling import SampledAnswer, check_prompt_lengths, sample_answers
from fathom.inference.language_model import LanguageModel
from fathom.inference.loading import find_checkpoint, open_source
from fathom.inference.run_record import as_written, read_json
from fathom.locale import tr
from fathom.pipeline.context import StepContext, measured_steps
from fathom.pipeline.problem_sources import opened_problems
from fathom.pipeline.reward_functions import open_judge
from fathom.pipeline.rollouts import ANSWERS_AT_ONCE, answering_engine
from fathom.pipeline.run_models import open_step
from fathom.pipeline.task_scores import Record, change, examples, stage_score
from fathom.posttrain.prompts import PromptFormatter
from fathom.posttrain.rewards.base import RewardInput
from fathom.posttrain.rewards.extract import stated_answer
from fathom.posttrain.rewards.failures import MonitoredJudge
from fathom.spec.mapping import to_mapping
from fathom.spec.problem import Problem
from fathom.spec.recipe import ModelStep, TasksStep
from fathom.train.alarms import cut_off_text

JUDGE_BATCH_SIZE = 32
"""Answers that go to the judge together."""
IRRELEVANT_FIELDS = ("name", "stages", "problems", "count")
"""Fields of the step that do not change what a stage answers to a task's problems."""


def run(step: TasksStep, context: StepContext) -> None:
    """Write ``tasks`` (task -> stage -> figures) and ``examples`` to ``context.path(step)``."""
    tasks = {source.name: held_out_problems(step, index, context) for index, source in enumerate(step.problems)}
    named = measured_steps(context.recipe, step)
    progress = _StageProgress(context, len(named) * step.samples * sum(map(len, tasks.values())))
    records: dict[str, dict[str, Sequence[Record]]] = {task: {} for task in tasks}
    scores: dict[str, dict[str, Any]] = {task: {} for task in tasks}
    with open_judge(context, step, step.rewards, seconds=step.reward_timeout_seconds) as judge:
        for problems in tasks.values():
            _check_judged(step, judge, problems[0])
        stages = [_Stage(step, stage, context, judge, progress, tasks) for stage in named]
        for stage in stages:
            for task, (found, seconds) in stage.measured():
                scores[task][stage.name] = _scored(found, seconds, records[task])
                answers = [answer for record in found for answer in record["answers"]]
                if answers and not any(answer["finished"] for answer in answers):
                    said = cut_off_text(f"{step.name}.max_tokens", step.max_tokens, len(answers))
                    context.progress.message(f"{stage.name} {task}: {said}")
                records[task][stage.name] = found
    shown = {task: examples(stages_of) for task, stages_of in records.items()}
    write_json(context.path(step), {"tasks": scores, "examples": shown})
    for task, of in scores.items():
        line = ", ".join(f"{stage} {score['accuracy']:.0%}" for stage, score in of.items())
        context.progress.message(tr("{task}: {line} of {count} problems", task=task, line=line, count=len(tasks[task])))


def held_out_problems(step: TasksStep, index: int, context: StepContext) -> list[Problem]:
    """Return up to ``count`` different held-out problems of a source, the same ones for every stage."""
    opened = opened_problems(step.problems[index], context)
    size = opened.size("held_out")
    problems = opened.problems("held_out", 0, step.count if size is None else min(step.count, size))
    different = list({problem.question: problem for problem in reversed(problems)}.values())[::-1]
    if not different:
        raise SpecError(f"steps.{step.name}.problems[{index}]", f"{opened.name} holds nothing out", "take another")
    if len(different) < step.count:
        left = {"name": opened.name, "count": len(different)}
        context.progress.message(tr("{name}: {count} held-out problems, there are no more", **left))
    return different


def _check_judged(step: TasksStep, judge: MonitoredJudge, problem: Problem) -> None:
    """Refuse rewards that do not say whether an answer to a task's problems is right, before anything is drawn."""
    (judgement,) = judge.probe([RewardInput(prompt=problem.question, answer="?", problem=problem)])
    if judgement.correct is None:
        kind = "code" if "tests" in problem.details else "accuracy"
        where = f"steps.{step.name}.rewards"
        raise SpecError(where, f"none says what is a right answer to {problem.task}", f'add {{kind = "{kind}"}}')


def _scored(records: Sequence[Record], seconds: float, earlier: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """Score a stage, with the change over the stage before."""
    score = stage_score(records, seconds)
    if earlier:
        before = list(earlier)[-1]
        rise = change(earlier[before], records)
        score |= {"change": {"before": before, **rise}} if rise is not None else {}
    return score


class _StageProgress:
    """Passes on how many answers are judged, of all stages and tasks, and how many of this one's are right."""

    def __init__(self, context: StepContext, total: int) -> None:
        self.context, self.total, self.done = context, total, 0

    def add(self, stage: str, task: str, answers: int, right: float | None = None) -> None:
        self.done += answers
        metrics = {} if right is None else {"right": f"{right:.0%}"}
        self.context.progress.update(self.done, self.total, "answers", phase=f"{stage} {task}", metrics=metrics)


class _Stage:
    """One stage's model on all tasks; whether it can be asked is checked at once, before any stage answers."""

    def __init__(
        self,
        step: TasksStep,
        stage: ModelStep,
        context: StepContext,
        judge: MonitoredJudge,
        progress: _StageProgress,
        tasks: Mapping[str, Sequence[Problem]],
    ) -> None:
        self.step, self.context, self.judge, self.progress, self.tasks = step, context, judge, progress, tasks
        self.stage, self.name = stage, stage.name
        path = context.path(stage)
        self._checkpoint = (find_checkpoint(path) / MANIFEST).read_bytes()
        source = open_source(path)
        tokenizer = source.tokenizer()
        if tokenizer is None:
            raise CheckpointError(f"{path}: has no tokenizer; --restart the run")
        self._prompter = PromptFormatter(tokenizer, step.prompt)
        for problems in tasks.values():
            prompts = [self._prompter.encode(problem) for problem in problems]
            check_prompt_lengths(problems, prompts, source.spec.max_position_embeddings)

    def measured(self) -> Iterator[tuple[str, tuple[Sequence[Record], float]]]:
        """Yield every task with its records and the seconds they took; from disk where they are there."""
        model: LanguageModel | None = None
        for task, problems in self.tasks.items():
            path = self.context.directory / self.step.name / self.name / f"{task}.json"
            key = self._key(problems)
            kept = _kept(path, key)
            if kept is not None:
                self.progress.add(self.name, task, len(problems) * self.step.samples)
                yield task, kept
                continue
            if model is None:
                model = open_step(self.context, self.stage, engine=answering_engine(ANSWERS_AT_ONCE))
            started = time.perf_counter()
            records = self._records(model, task, problems)
            seconds = time.perf_counter() - started
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"key": key, "seconds": seconds, "records": records})
            yield task, (records, seconds)

    def _records(self, model: LanguageModel, task: str, problems: Sequence[Problem]) -> list[Record]:
        prompts = [self._prompter.question(problem) for problem in problems]
        judged: dict[tuple[int, int], dict[str, Any]] = {}
        answers = sample_answers(model, self._prompter, problems, self.step)
        while batch := list(islice(answers, JUDGE_BATCH_SIZE)):
            judged |= self._judged(batch, problems, prompts)
            right = sum(answer["correct"] for answer in judged.values()) / len(judged)
            self.progress.add(self.name, task, len(batch), right)
        return [
            {
                "id": problem.id,
                "question": problem.question,
                "expected": problem.answer,
                "answers": [judged[index, copy] for copy in range(self.step.samples)],
            }
            for index, problem in enumerate(problems)
        ]

    def _judged(
        self, batch: Sequence[SampledAnswer], problems: Sequence[Problem], prompts: Sequence[str]
    ) -> dict[tuple[int, int], dict[str, Any]]:
        """Judge answers; one that the engine failed at is wrong."""
        answered = [
            RewardInput(prompt=prompts[d.index], answer=d.text, problem=problems[d.index], finished=d.finished)
            for d in batch
        ]
        found = {}
        for drawn, judgement in zip(batch, self.judge.judge(answered), strict=True):
            found[drawn.index, drawn.copy] = {
                "text": drawn.text,
                "answer": stated_answer(drawn.text),
                "correct": bool(judgement.correct) and drawn.error is None,
                "finished": drawn.finished,
                "tokens": drawn.tokens,
                "rewards": dict(judgement.parts),
                "failures": dict(judgement.failures) | ({} if drawn.error is None else {"engine": drawn.error}),
            }
        return found

    def _key(self, problems: Sequence[Problem]) -> str:
        """Return a digest of all that the records depend on."""
        step = {name: value for name, value in to_mapping(self.step).items() if name not in IRRELEVANT_FIELDS}
        document = json.dumps([step, to_mapping(tuple(problems))], sort_keys=True).encode()
        return sha256(document + self._checkpoint)


def _kept(path: Path, key: str) -> tuple[list[Record], float] | None:
    """Return records and seconds of an earlier run of the same, if there are any."""
    document = read_json(path) if path.exists() else None
    if not isinstance(document, dict) or document.get("key") != key:
        return None
    with as_written(path):
        stage_score(document["records"], document["seconds"])
        examples({"": document["records"]})
        return document["records"], document["seconds"]
