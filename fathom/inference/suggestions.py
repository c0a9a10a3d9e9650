"""What to ask a model first: problems and texts that its own run asked, as the run directory records them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal

from fathom.errors import FathomError
from fathom.files import read_text
from fathom.inference.loading import find_run
from fathom.inference.run_record import LARGEST_RECORD, read_json, read_recipe
from fathom.posttrain.prompts import PromptFormatter
from fathom.spec.problem import Problem
from fathom.spec.recipe import GrpoStep, Recipe, SampleStep, TasksStep, TrainStep
from fathom.spec.rollout import ChatPrompt, Prompting
from fathom.spec.step_results import result_name
from fathom.tokenizer.bpe import Tokenizer

MAX_SUGGESTIONS = 4
SAMPLES_FILE = "samples.jsonl"
SuggestionKind = Literal["chat", "completion"]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A prompt to try: ``label`` is shown, ``text`` is sent."""

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Suggestions:
    """How a model is best asked, and a few prompts for it; none where its directory records none.

    ``chat``: by messages of a conversation. ``completion``: by the start of a text, which it continues.
    """

    kind: SuggestionKind
    prompts: tuple[Suggestion, ...] = ()


def suggestions_for(path: Path, tokenizer: Tokenizer) -> Suggestions:
    """Return what to ask the model whose checkpoint is at ``path``.

    A pretrained model of a run gets the text starts of the run's sample step. A post-trained one gets problems of the
    run's tasks, those first that it solved, each task in turn; or of its own rollouts where no task was measured.
    """
    default = Suggestions("chat" if tokenizer.can_chat else "completion")
    run = find_run(path)
    if run is None:
        return default
    recipe = read_recipe(run)
    stage = next(iter(path.resolve().relative_to(run).parts), "")
    step = next((step for step in recipe.steps if step.name == stage), None)
    if isinstance(step, TrainStep):
        return Suggestions("completion", tuple(Suggestion(text.strip(), text) for text in _text_starts(recipe)))
    try:
        for prompting, questions in _asked(run, recipe, stage):
            if questions:
                return _formatted(prompting, questions, tokenizer)
    except (FathomError, OSError, ValueError, LookupError, TypeError, AttributeError):  # a damaged record: serve anyway
        pass
    return default


def _text_starts(recipe: Recipe) -> tuple[str, ...]:
    prompts = next((step.prompts for step in reversed(recipe.steps) if isinstance(step, SampleStep)), ())
    return prompts[:MAX_SUGGESTIONS]


def _asked(run: Path, recipe: Recipe, stage: str) -> Iterator[tuple[Prompting, Sequence[str]]]:
    """Yield questions that the run put to its models, best source first, and how they were put."""
    for step in reversed(recipe.steps):
        if isinstance(step, TasksStep) and (run / result_name(step)).exists():
            yield step.prompt, _task_questions(read_json(run / result_name(step)), stage)
    for step in recipe.steps:
        if isinstance(step, GrpoStep) and step.name == stage:
            yield step.policy.rollout.prompt, _rollout_questions(run / step.name / SAMPLES_FILE)


def _task_questions(result: Mapping[str, Any], stage: str) -> list[str]:
    """Return the questions of a tasks step, one of each task in turn, solved ones first."""
    by_task = []
    for examples in result["examples"].values():
        solved = sorted(examples, key=lambda example: not example["answers"].get(stage, {}).get("correct", False))
        by_task.append([example["question"] for example in solved])
    return [question for question in chain.from_iterable(zip_longest(*by_task)) if question is not None]


def _rollout_questions(path: Path) -> list[str]:
    """Return the questions of the latest rollouts that were kept."""
    lines = read_text(path, LARGEST_RECORD).splitlines() if path.exists() else []
    return [json.loads(line)["question"] for line in lines[-MAX_SUGGESTIONS:]]


def _formatted(prompting: Prompting, questions: Sequence[str], tokenizer: Tokenizer) -> Suggestions:
    """Put questions as the run did: as they are in a chat, or inside the text that a base model continues."""
    shown = list(dict.fromkeys(questions))[:MAX_SUGGESTIONS]
    if isinstance(prompting, ChatPrompt):
        return Suggestions("chat", tuple(Suggestion(question.strip(), question) for question in shown))
    formatter = PromptFormatter(tokenizer, prompting)
    problems = [Problem(id="suggestion", task="suggestion", question=question, answer="") for question in shown]
    texts = [formatter.messages(problem)[-1]["content"] for problem in problems]
    return Suggestions("completion", tuple(map(Suggestion, (question.strip() for question in shown), texts)))
