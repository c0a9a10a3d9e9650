"""Answers to a file of prompts: checked whole, made together, kept as they end, and published in order."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fathom.data.prompts import PromptRow, read_prompts
from fathom.data.row_report import RowProblem, RowReport
from fathom.engine.request import Request
from fathom.errors import ContextError, DataError
from fathom.files import file_sha256
from fathom.inference.chat_session import AnswerBuilder, as_conversation, make_request, run_many
from fathom.inference.journal import Journal, check_absent, open_journal
from fathom.inference.language_model import LanguageModel
from fathom.inference.request_preparation import (
    ChatOptions,
    PreparedRequest,
    TextOptions,
    prepare_chat,
    prepare_text,
    require_chat_template,
)
from fathom.progress import NULL_PROGRESS, Progress

ANSWER_COLUMNS = (
    "generated_text",
    "generated_thinking",
    "generated_tool_calls",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
)
"""Columns that an answer adds to its row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How a file of prompts is put to a model.

    Texts are messages of a user with ``chat``, else continued; None asks so where the model has a chat template.
    ``sampling`` has fields of ``SamplingParams``; a ``seed`` is that of the first row, and one more for each further
    one. ``most`` bounds an answer where ``max_tokens`` is None.
    """

    options: ChatOptions
    sampling: Mapping[str, Any]
    most: int
    chat: bool | None = None
    skip_bad: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What became of a file: rows answered, those of them answered before, and those left out."""

    rows: int
    kept: int
    left_out: RowReport


def check_prompts(path: Path, out: Path, *, skip_bad: bool) -> RowReport:
    """Read a file of prompts to its end before a model is opened; return what of it can be used.

    Raises:
        DataError: a row cannot be used, unless ``skip_bad``; or none can.
        ResourceError: ``out`` exists.
    """
    check_absent(out)
    if out.resolve() == path.resolve():
        raise DataError(f"{out}: is the file of prompts; give another --out")
    report = RowReport()
    for row in read_prompts(path):
        _count(report, row if isinstance(row, RowProblem) else _problem(row), skip_bad)
    if not report.used:
        raise DataError(f"{path}: holds no prompt ({report.first}); write one on each line")
    return report


def answer_file(
    model: LanguageModel,
    path: Path,
    out: Path,
    asking: Asking,
    *,
    name: str,
    progress: Progress = NULL_PROGRESS,
) -> Answered:
    """Answer a file's prompts and publish them as lines of JSON in its order, each with all columns of its row.

    Every prompt is checked before the first is answered. What is answered is kept in a journal beside ``out``: after
    an interruption the same call goes on. ``name`` is what the model is called in it.

    Raises:
        DataError: as ``check_prompts``; or a journal is there of another model, file or options.
        ContextError: a prompt leaves no tokens for an answer, unless ``skip_bad``.
    """
    chat = model.tokenizer.can_chat if asking.chat is None else asking.chat
    if chat:
        require_chat_template(model.tokenizer, name, "--chat")
    file = _PromptFile(model, path, asking, chat)
    report = file.checked(progress)
    work = {
        "model": name,
        "input": file_sha256(path),
        "options": json.loads(json.dumps([chat, *file.described()], default=str)),
    }
    with open_journal(out, work) as journal:
        kept = len(journal.records)
        file.answer(journal, report.used, progress)
        rows = {record["number"]: record["answer"] for record in journal.records}
        journal.publish(_joined(path, rows))
    return Answered(rows=len(rows), kept=kept, left_out=report)


class _PromptFile:
    """A file of prompts as one model is asked it."""

    def __init__(self, model: LanguageModel, path: Path, asking: Asking, chat: bool) -> None:
        self.model, self.path, self.asking, self.chat = model, path, asking, chat
        shared = {each.name: getattr(asking.options, each.name) for each in dataclasses.fields(TextOptions)}
        self._text_options = TextOptions(**shared)
        self._unusable: set[int] = set()

    def described(self) -> list[Any]:
        """Return the options that an answer depends on."""
        return [repr(self.asking.options), dict(self.asking.sampling), self.asking.most]

    def checked(self, progress: Progress) -> RowReport:
        """Prepare every prompt once and note those that cannot be answered; errors as of ``answer_file``."""
        report = RowReport()
        for number, row in enumerate(read_prompts(self.path), start=1):
            problem = row if isinstance(row, RowProblem) else _problem(row) or self._unfit(row)
            _count(report, problem, self.asking.skip_bad)
            if problem is not None and not isinstance(row, RowProblem):
                self._unusable.add(row.number)
            progress.update(number, None, "rows", phase="check")
        if not report.used:
            raise DataError(f"{self.path}: no prompt can be answered ({report.first}); correct the file")
        return report

    def answer(self, journal: Journal, total: int, progress: Progress) -> None:
        """Answer what the journal does not have, of the prompts that ``checked`` found to be usable."""
        skipped = self._unusable | {record["number"] for record in journal.records}
        asked: list[int] = []

        def requests() -> Iterator[tuple[PreparedRequest, Request]]:
            for row in read_prompts(self.path):
                if isinstance(row, RowProblem) or row.number in skipped:
                    continue
                asked.append(row.number)
                yield self._request(row)

        tokens = 0
        for index, builder in run_many(self.model.engine, requests()):
            journal.add({"number": asked[index], "answer": _columns(builder)})
            tokens += len(builder.tokens)
            progress.update(len(journal.records), total, "rows", metrics={"tokens": f"{tokens:,}"})

    def _request(self, row: PromptRow) -> tuple[PreparedRequest, Request]:
        prepared = self._prepared(row)
        sampling = dict(self.asking.sampling)
        if sampling.get("seed") is not None:
            sampling["seed"] += row.number
        return prepared, make_request(self.model, prepared, sampling, self.asking.most)

    def _prepared(self, row: PromptRow) -> PreparedRequest:
        if row.text is not None and not self.chat:
            return prepare_text(self.model, row.text, options=self._text_options)
        if not self.model.tokenizer.can_chat:
            raise DataError("is a conversation, but this model has no chat template; give texts, or another model")
        messages = as_conversation(self.model, row.messages if row.text is None else row.text)
        options = dataclasses.replace(self.asking.options, tools=row.tools) if row.tools else self.asking.options
        return prepare_chat(self.model, messages, options)

    def _unfit(self, row: PromptRow) -> RowProblem | None:
        """Return why a prompt cannot be answered by this model."""
        try:
            self.model.engine.prepare(self._request(row)[1])
        except ContextError as error:
            return RowProblem("too_long", row.place, str(error))
        except DataError as error:
            return RowProblem("template", row.place, str(error))
        return None


def _problem(row: PromptRow) -> RowProblem | None:
    taken = next((name for name in ANSWER_COLUMNS if name in row.row), None)
    if taken is None:
        return None
    return RowProblem("malformed", row.place, f"has a column {taken!r}, which the answer is to have; rename it")


def _count(report: RowReport, problem: RowProblem | None, skip_bad: bool) -> None:
    if problem is None:
        report.used += 1
    elif skip_bad:
        report.add(problem)
    else:
        raise DataError(f"{problem}; or leave such rows out with --skip-bad")


def _columns(builder: AnswerBuilder) -> dict[str, Any]:
    answer = builder.answer
    columns: dict[str, Any] = {"generated_text": answer.text}
    if answer.thinking:
        columns["generated_thinking"] = answer.thinking
    if answer.tool_calls:
        columns["generated_tool_calls"] = [{"name": c.name, "arguments": c.arguments} for c in answer.tool_calls]
    return columns | {
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.usage.prompt_tokens,
        "completion_tokens": answer.usage.completion_tokens,
    }


def _joined(path: Path, answers: Mapping[int, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield every answered row with its answer; a row without an id is called by its number, from 1."""
    for row in read_prompts(path):
        if not isinstance(row, RowProblem) and row.number in answers:
            named = {} if "id" in row.row else {"id": row.number + 1}
            yield {**named, **row.row, **answers[row.number]}
