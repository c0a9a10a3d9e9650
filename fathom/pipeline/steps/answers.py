"""The answers step: a model answers training problems, and what it answered well becomes data (R1 §2.3.3)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from fathom.data.conversations.templated import REASONING
from fathom.files import write_json
from fathom.inference.answer_sampling import check_prompt_lengths, count_failures
from fathom.locale import tr
from fathom.pipeline.context import StepContext, model_step
from fathom.pipeline.reward_functions import open_judge
from fathom.pipeline.rollouts import ANSWERS_AT_ONCE, answering_engine, questions
from fathom.pipeline.run_models import open_step
from fathom.pipeline.steps.dpo import ANSWERS
from fathom.pipeline.steps.sft import CONVERSATIONS
from fathom.posttrain.prompts import PromptFormatter
from fathom.posttrain.rewards.base import Judgement, RewardInput
from fathom.posttrain.rewards.extract import ReasoningSplit, split_reasoning
from fathom.posttrain.rewards.failures import MonitoredJudge
from fathom.posttrain.rewards.language import consistency
from fathom.posttrain.rollout import Rollout, sample_rollouts
from fathom.spec.problem import Problem
from fathom.spec.recipe import AnswersStep
from fathom.spec.rollout import ChatPrompt, RolloutSpec
from fathom.train.alarms import cut_off_text

SUMMARY = "summary.json"
CODE = "```"


@dataclass(frozen=True, slots=True)
class _ScoredRollout:
    """An answer and what it is worth."""

    rollout: Rollout
    judgement: Judgement


def run(step: AnswersStep, context: StepContext) -> None:
    """Write ``answers.jsonl``, one line an answer, ``conversations.jsonl``, one a kept answer, and ``summary.json``."""
    engine = answering_engine(step.count * step.samples)
    model = open_step(context, model_step(context.recipe, step), engine=engine)
    prompt_formatter = PromptFormatter(model.tokenizer, step.prompt)
    problems = _unique_problems(questions(context, step.problems, step.seed).next(step.count))
    check_prompt_lengths(
        problems, [prompt_formatter.encode(problem) for problem in problems], model.spec.max_position_embeddings
    )
    if len(problems) < step.count:
        context.progress.message(tr("{count} different problems, there are no more", count=len(problems)))

    def draw(first: int, chosen: Sequence[Problem]) -> list[Rollout]:
        return sample_rollouts(
            model.engine,
            prompt_formatter,
            chosen,
            _sampling(step, len(chosen)),
            seed=step.seed,
            context=model.spec.max_position_embeddings,
            first_group=first,
        )

    directory = context.path(step)
    directory.mkdir(parents=True)
    tally = _AnswerCounts()
    with (
        open_judge(context, step, step.rewards, seconds=step.reward_timeout_seconds) as judge,
        (directory / ANSWERS).open("w", encoding="utf-8") as answers,
        (directory / CONVERSATIONS).open("w", encoding="utf-8") as conversations,
    ):
        at_once = max(1, ANSWERS_AT_ONCE // step.samples)
        for first in range(0, len(problems), at_once):
            chosen = problems[first : first + at_once]
            given = _judged(draw(first, chosen), prompt_formatter, judge)
            _write(answers, (_line(each, prompt_formatter) for each in given))
            _write(conversations, _conversations(step, chosen, given, prompt_formatter, tally))
            done = (first + len(chosen)) * step.samples
            context.progress.update(done, len(problems) * step.samples, "answers", metrics={"right": tally.share})
    write_json(directory / SUMMARY, tally.document())
    if not tally.finished and tally.total("answers"):
        context.progress.message(cut_off_text(f"{step.name}.max_tokens", step.max_tokens, tally.total("answers")))
    for line in tally.lines():
        context.progress.message(line)


class _AnswerCounts:
    """Counts by task of the answers and of the reasons why some are not kept."""

    def __init__(self) -> None:
        self.tasks: dict[str, dict[str, int]] = {}
        self.failures: list[Mapping[str, str]] = []
        self.judged = False
        self.finished = 0

    def add(self, task: str, **counts: int) -> None:
        """Count for a task."""
        mine = self.tasks.setdefault(task, {})
        for name, count in counts.items():
            mine[name] = mine.get(name, 0) + count

    def total(self, name: str) -> int:
        """Return a count over all tasks."""
        return sum(counts.get(name, 0) for counts in self.tasks.values())

    @property
    def share(self) -> str:
        """The share of right answers."""
        return f"{self.total('correct') / max(self.total('answers'), 1):.0%}"

    def document(self) -> dict[str, Any]:
        """Return all counts."""
        return {"tasks": self.tasks, "failures": count_failures(self.failures)}

    def lines(self) -> Iterator[str]:
        """Say what was kept."""
        for task, counts in self.tasks.items():
            yield f"{task}: {counts['correct']} of {counts['answers']} answers are right, {counts['kept']} kept"
        if not self.judged:
            yield "nothing is kept, for no reward says what is right; add accuracy, with weight 0 if it shall not count"


def _unique_problems(problems: Sequence[Problem]) -> list[Problem]:
    """Return problems without those that come again: a file's cycle."""
    return list({(problem.task, problem.id): problem for problem in reversed(problems)}.values())[::-1]


def _sampling(step: AnswersStep, asked: int) -> RolloutSpec:
    return RolloutSpec(
        questions=asked,
        group_size=step.samples,
        max_tokens=step.max_tokens,
        temperature=step.temperature,
        top_p=step.top_p,
        prompt=step.prompt,
    )


def _judged(
    rollouts: Sequence[Rollout], prompt_formatter: PromptFormatter, judge: MonitoredJudge
) -> list[_ScoredRollout]:
    answered = [
        RewardInput(
            prompt=prompt_formatter.question(rollout.problem),
            answer=rollout.text,
            problem=rollout.problem,
            finished=rollout.finished,
        )
        for rollout in rollouts
    ]
    found = judge.judge(answered) if answered else []
    return [_ScoredRollout(rollout, judgement) for rollout, judgement in zip(rollouts, found, strict=True)]


def _line(given: _ScoredRollout, prompt_formatter: PromptFormatter) -> dict[str, Any]:
    rollout, judgement = given.rollout, given.judgement
    return {
        "id": rollout.problem.id,
        "task": rollout.problem.task,
        "question": rollout.problem.question,
        "prompt": prompt_formatter.question(rollout.problem),
        "answer": rollout.text,
        "prompt_ids": rollout.prompt_ids,
        "answer_ids": rollout.answer_ids,
        "total": judgement.total,
        "correct": judgement.correct,
        "parts": dict(judgement.parts),
        "finished": rollout.finished,
    }


def _conversations(
    step: AnswersStep,
    problems: Sequence[Problem],
    given: Sequence[_ScoredRollout],
    prompt_formatter: PromptFormatter,
    tally: _AnswerCounts,
) -> Iterator[dict[str, Any]]:
    """Yield the kept answers of each problem as conversations, and count all."""
    by_problem: dict[tuple[str, str], list[_ScoredRollout]] = {}
    for each in given:
        by_problem.setdefault((each.rollout.problem.task, each.rollout.problem.id), []).append(each)
        tally.failures.append(each.judgement.failures)
        tally.finished += each.rollout.finished
        tally.judged = tally.judged or each.judgement.correct is not None
    for problem in problems:
        answers = by_problem.get((problem.task, problem.id), [])
        right = [each for each in answers if each.judgement.correct]
        tally.add(problem.task, problems=1, answers=len(answers), correct=len(right), solved=bool(right))
        kept = _select_kept(step, problem, right, tally)
        tally.add(problem.task, kept=len(kept))
        for split in kept:
            reasoning = {REASONING: split.thinking} if split.thinking else {}
            said = {"role": "assistant", "content": split.answer, **reasoning}
            yield {"messages": [*_prompt_messages(step, problem, prompt_formatter), said]}


def _select_kept(
    step: AnswersStep, problem: Problem, right: Sequence[_ScoredRollout], tally: _AnswerCounts
) -> list[ReasoningSplit]:
    """Choose up to ``keep`` of a problem's right answers, the shortest first, no two of them alike."""
    chosen: list[ReasoningSplit] = []
    for each in sorted(right, key=lambda each: len(each.rollout.answer_ids)):
        split = split_reasoning(each.rollout.text)
        if not each.rollout.finished or not split.answer:
            tally.add(problem.task, unfinished=1)
        elif consistency(split.thinking or split.answer, problem.language) < step.min_language:
            tally.add(problem.task, mixed_language=1)
        elif CODE in each.rollout.text and not step.code_blocks:
            tally.add(problem.task, code_blocks=1)
        elif split in chosen:
            tally.add(problem.task, alike=1)
        elif len(chosen) < step.keep:
            chosen.append(split)
    return chosen


def _prompt_messages(step: AnswersStep, problem: Problem, prompt_formatter: PromptFormatter) -> list[dict[str, str]]:
    """Return what was asked as messages: of a plain text only the question, for others may put it otherwise."""
    if isinstance(step.prompt, ChatPrompt):
        return prompt_formatter.messages(problem)
    return [{"role": "user", "content": problem.question}]


def _write(file: TextIO, rows: Iterable[Mapping[str, Any]]) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    file.flush()
