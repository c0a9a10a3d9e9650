"""Public tasks: encoding of the prompts, evaluation, and records of every answer with its verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fathom.chat import encode_chat
from fathom.errors import ContextError, SpecError
from fathom.evals.accuracy import Accuracy
from fathom.evals.multiple_choice import ChoiceResult, Question, score_questions
from fathom.evals.task_cases import ChoiceCase, ProblemCase, Task, read_cases
from fathom.evals.word_problems import ProblemResult, judge_number, same_number, solve
from fathom.inference.language_model import LanguageModel
from fathom.inference.request_preparation import require_chat_template
from fathom.posttrain.rewards.accuracy import same_answer
from fathom.posttrain.rewards.extract import stated_answer
from fathom.progress import NULL_PROGRESS, Progress
from fathom.spec.sampling import SamplingParams
from fathom.tokenizer.bpe import Tokenizer

Record = Mapping[str, Any]
Add = Callable[[dict[str, Any]], None]
BASE_STOP = "\nQuestion:"
"""Stop string where questions are texts to continue: a model goes on with further questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """A task's score and every answer; ``accuracy_norm`` is by log-likelihood per byte, for multiple choice only.

    ``truncated`` counts contexts that were left-truncated to fit the model's; ``chat`` is whether the chat template
    was used.
    """

    task: Task
    accuracy: Accuracy
    accuracy_norm: Accuracy | None
    seconds: float
    chat: bool
    truncated: int
    records: tuple[Mapping[str, Any], ...] = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """Return the score as plain JSON."""
        rows: dict[str, Any] = {"n": self.accuracy.n, "accuracy": self.accuracy.value}
        rows["interval_95"] = list(self.accuracy.interval)
        if self.accuracy_norm is not None:
            rows["accuracy_by_bytes"] = self.accuracy_norm.value
            rows["interval_95_by_bytes"] = list(self.accuracy_norm.interval)
        return rows | {
            "seconds": round(self.seconds, 2),
            "chat_template": self.chat,
            "truncated": self.truncated,
            "licence": self.task.licence,
            "source": self.task.source,
        }


def run_task(
    model: LanguageModel,
    task: Task,
    *,
    cache_dir: Path,
    limit: int | None = None,
    apply_chat_template: bool | None = None,
    progress: Progress = NULL_PROGRESS,
) -> TaskResult:
    """Measure a model on a task's cases, or on the first ``limit`` of them.

    ``apply_chat_template`` says whether questions are asked as a chat; None: where the model has a template.

    Raises:
        DataError: a chat template is asked for, and the model has none.
        SourceError: the cases cannot be fetched.
        ContextError: a problem and its answer do not fit the model's context.
    """
    if limit is not None and limit < 1:
        raise SpecError("--limit", f"{limit} cases", "give at least 1")
    uses_chat(model.tokenizer, task, apply_chat_template, str(model.path))
    cases = read_cases(task, cache_dir)[:limit]
    return run_cases(model, task, cases, apply_chat_template=apply_chat_template, progress=progress)


def run_cases(
    model: LanguageModel,
    task: Task,
    cases: Sequence[ChoiceCase] | Sequence[ProblemCase],
    *,
    done: Sequence[Record] = (),
    keep: Callable[[dict[str, Any]], None] = lambda record: None,
    apply_chat_template: bool | None = None,
    progress: Progress = NULL_PROGRESS,
) -> TaskResult:
    """Measure a model on cases of a task; ``done`` are records of some of them, which are not measured again.

    ``keep`` is given every further record as soon as it is there. Errors as of ``run_task``, but for sources.
    """
    records = {record["id"]: record for record in done}
    todo = [case for case in cases if case.id not in records]
    chat = uses_chat(model.tokenizer, task, apply_chat_template, str(model.path))
    task_progress = _TaskProgress(progress, len(cases), done)
    started = time.perf_counter()

    def add(record: dict[str, Any]) -> None:
        records[record["id"]] = record
        keep(record)
        task_progress(bool(record["correct"]))

    if task.form == "word_problems":
        _run_problems(model, task, [case for case in todo if isinstance(case, ProblemCase)], chat, add)
    else:
        _run_choices(model, task, [case for case in todo if isinstance(case, ChoiceCase)], add)
    found = [records[case.id] for case in cases]
    by_bytes = [record["chosen_by_bytes"] == record["expected"] for record in found if "chosen_by_bytes" in record]
    return TaskResult(
        task=task,
        accuracy=Accuracy.of(bool(record["correct"]) for record in found),
        accuracy_norm=Accuracy.of(by_bytes) if by_bytes else None,
        seconds=time.perf_counter() - started,
        chat=chat,
        truncated=sum(record.get("truncated", 0) > 0 for record in found),
        records=tuple({name: value for name, value in record.items() if name != "truncated"} for record in found),
    )


def uses_chat(tokenizer: Tokenizer, task: Task, asked: bool | None, name: str) -> bool:
    """Return whether a task's questions are asked as a chat: as ``asked``, or where model ``name`` has a template.

    Raises:
        DataError: a chat is asked for, and the model has no template.
        SpecError: a chat is asked for of multiple choice, which is scored as text.
    """
    if task.form != "word_problems":
        if asked:
            problem = f"{task.name} is multiple choice, which is scored as text"
            raise SpecError("--apply-chat-template", problem, "leave it out, or name another task")
        return False
    if asked:
        require_chat_template(tokenizer, name)
    return tokenizer.can_chat if asked is None else asked


def judge_stated(text: str, expected: str) -> tuple[str | None, bool]:
    """Return what a text states at its end and whether it is what is expected: of a number the value counts."""
    if same_number(expected, expected):
        return judge_number(text, expected)
    answer = stated_answer(text)
    return answer, answer is not None and same_answer(answer.casefold(), expected.casefold())


class _TaskProgress:
    """Reports how many answers are done and how many of them are right."""

    def __init__(self, progress: Progress, total: int, done: Sequence[Record]) -> None:
        self.progress, self.total = progress, total
        self.done, self.right = len(done), sum(bool(record["correct"]) for record in done)

    def __call__(self, correct: bool) -> None:
        self.done += 1
        self.right += correct
        self.progress.update(self.done, self.total, "answers", metrics={"right": f"{self.right / self.done:.0%}"})


def choice_questions(tokenizer: Tokenizer, cases: Sequence[ChoiceCase]) -> list[Question]:
    """Encode cases; a choice's tokens are those after the context's in the encoding of context, space and choice."""
    questions = []
    for case in cases:
        context = tokenizer.encode(case.context)
        whole = tokenizer.encode_batch([f"{case.context} {choice}" for choice in case.choices])
        questions.append(
            Question(
                context_ids=[*tokenizer.prefix_ids, *context],
                choices_ids=[ids[len(context) :] for ids in whole],
                choice_bytes=[len(choice.encode()) for choice in case.choices],
                answer=case.answer,
            )
        )
    return questions


def problem_prompts(tokenizer: Tokenizer, task: Task, cases: Sequence[ProblemCase], *, chat: bool) -> list[list[int]]:
    """Encode questions as a chat, or as a text to continue."""
    if chat:
        contents = [task.chat_prompt.format(question=case.question) for case in cases]
        return [encode_chat(tokenizer, [{"role": "user", "content": content}]) for content in contents]
    texts = [task.prompt.format(question=case.question) for case in cases]
    return [[*tokenizer.prefix_ids, *tokenizer.encode(text)] for text in texts]


def _run_choices(model: LanguageModel, task: Task, cases: Sequence[ChoiceCase], add: Add) -> None:
    def report(index: int, scored: ChoiceResult) -> None:
        add(_choice_record(task, cases[index], scored))

    score_questions(model.model, choice_questions(model.tokenizer, cases), on_result=report)


def _choice_record(task: Task, case: ChoiceCase, result: ChoiceResult) -> dict[str, Any]:
    return {
        "task": task.name,
        "id": case.id,
        "prompt": case.context,
        "choices": list(case.choices),
        "logprobs": list(result.logprobs),
        "chosen": result.chosen,
        "chosen_by_bytes": result.chosen_norm,
        "expected": case.answer,
        "correct": result.chosen == case.answer,
        "truncated": result.truncated,
    }


def _run_problems(model: LanguageModel, task: Task, cases: Sequence[ProblemCase], chat: bool, add: Add) -> None:
    if not cases:
        return
    tokenizer = model.tokenizer
    prompts = problem_prompts(tokenizer, task, cases, chat=chat)
    max_tokens = model.spec.max_position_embeddings - max(map(len, prompts))
    if max_tokens < 1:
        raise ContextError(
            f"{task.name}: its longest prompt of {max(map(len, prompts))} tokens leaves no tokens for an answer in the "
            f"context of {model.spec.max_position_embeddings}; choose another task"
        )

    def decode(ids: Sequence[int]) -> str:
        text = tokenizer.decode(ids)
        return text if chat else text.partition(BASE_STOP)[0]

    def report(index: int, result: ProblemResult) -> None:
        add(_problem_record(task, cases[index], tokenizer.decode(prompts[index], skip_special=False), result))

    solve(
        model.engine,
        prompts,
        [case.answer for case in cases],
        decode,
        params=SamplingParams(max_tokens=min(task.max_tokens, max_tokens), temperature=0.0),
        judge=judge_number if task.judge == "number" else judge_stated,
        on_result=report,
    )


def _problem_record(task: Task, case: ProblemCase, prompt: str, result: ProblemResult) -> dict[str, Any]:
    return {
        "task": task.name,
        "id": case.id,
        "prompt": prompt,
        "answer": result.text,
        "number": result.number,
        "expected": case.answer,
        "correct": result.correct,
        "finished": result.finished,
    }
