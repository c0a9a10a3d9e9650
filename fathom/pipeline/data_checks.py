"""Data files that a recipe names, recognised before its first step runs: hours may pass before they are read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from fathom.data.conversations.forms import CONVERSATION_FORMS
from fathom.data.forms import SAMPLED_ROWS, Columns, Form, file_records, recognised
from fathom.data.problems.forms import PROBLEM_FORMS
from fathom.data.records import Record
from fathom.errors import DataError
from fathom.pipeline.context import RunPlan
from fathom.posttrain.preferences import PREFERENCE_FORMS
from fathom.spec.alignment import ConversationFile, PairFile, WorkedProblems
from fathom.spec.problem import FileProblems
from fathom.spec.recipe import (
    AnswersStep,
    DistillStep,
    DpoStep,
    GrpoStep,
    RewardModelStep,
    SftStep,
    Step,
    TasksStep,
)

Source = ConversationFile | PairFile | FileProblems


def data_faults(plan: RunPlan, done: Collection[str]) -> Iterator[DataError]:
    """Read the first rows of every data file that a step which is not done reads; yield what is wrong with them.

    A file is missing; or its columns are of no known form, or of two, which is located at the step.
    """
    for step in plan.recipe.steps:
        if step.name in done:
            continue
        for field, source in _sources(step):
            path = plan.data_path(source.path)
            try:
                _check(f"steps.{step.name}.{field}: {path}", path, source)
            except DataError as error:
                yield error


def _check(where: str, path: Path, source: Source) -> None:
    forms: Sequence[Form[Any]] = PROBLEM_FORMS
    if isinstance(source, ConversationFile):
        forms = CONVERSATION_FORMS
    elif isinstance(source, PairFile):
        forms = PREFERENCE_FORMS
    records = islice(file_records(path), SAMPLED_ROWS)
    rows = [record.value for record in records if isinstance(record, Record)]
    if rows:
        recognised(where, rows, forms, Columns(source.format, source.fields))


def _sources(step: Step) -> Iterator[tuple[str, Source]]:
    """Yield the data files that a step names, and in which field."""
    if isinstance(step, SftStep):
        for index, data in enumerate(step.data):
            if isinstance(data, ConversationFile):
                yield f"data[{index}]", data
            elif isinstance(data, WorkedProblems) and isinstance(data.problems, FileProblems):
                yield f"data[{index}].problems", data.problems
    elif isinstance(step, DpoStep | RewardModelStep):
        yield from ((f"pairs[{index}]", pairs) for index, pairs in enumerate(step.pairs) if isinstance(pairs, PairFile))
    elif isinstance(step, GrpoStep | DistillStep | AnswersStep | TasksStep):
        for index, problems in enumerate(step.problems):
            if isinstance(problems, FileProblems):
                yield f"problems[{index}]", problems
