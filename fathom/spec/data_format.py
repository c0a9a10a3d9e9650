"""What the columns of a data file mean, where a recipe says it: ``format`` and ``fields`` of a source.

A format is one published layout of rows. ``fields`` maps the columns that a format knows to those of the file, e.g.
``{prompt = "question_text"}``. The readers' tables have the same names (tests compare them).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fathom.errors import SpecError
from fathom.spec import check
from fathom.spec.mapping import plain_table

Formats = Mapping[str, tuple[str, ...]]

_CONTEXT = ("tools", "functions", "system")
CONVERSATION_FORMATS: Formats = MappingProxyType(
    {
        "messages": ("messages", *_CONTEXT),
        "sharegpt": ("conversations", *_CONTEXT),
        "alpaca": ("instruction", "output", "input", "history", "system"),
        "prompt_completion": ("prompt", "completion", *_CONTEXT),
        "function_calls": ("query", "answers", "tools", "system"),
        "message_tree": ("message_tree_id", "text"),
        "question_answer": ("question", "context", "answer", "system"),
        "solution": ("question", "context", "solution", "system"),
        "chosen": ("chosen", "prompt", *_CONTEXT),
    }
)
PREFERENCE_FORMATS: Formats = MappingProxyType(
    {
        "preference": ("prompt", "chosen", "rejected", "system"),
        "implicit_prompt": ("chosen", "rejected", "system"),
        "messages": ("messages", "chosen", "rejected", "system"),
        "alpaca": ("instruction", "chosen", "rejected", "input", "system"),
        "input": ("input", "chosen", "rejected", "system"),
        "openai": ("input", "preferred_output", "non_preferred_output"),
        "ultrafeedback": ("instruction", "completions"),
        "kto": ("prompt", "completion", "label"),
    }
)
PROBLEM_FORMATS: Formats = MappingProxyType(
    {
        "question_answer": ("question", "answer", "context", "solution", "id", "language", "details", "split"),
        "free_answer": ("question", "answer", "context", "id", "language", "split"),
        "math": ("problem", "context", "solution", "answer", "id", "language", "split"),
        "prompt": ("prompt", "answer", "solution", "id", "language", "split"),
        "messages": ("messages", "answer", "solution", "id", "language", "split"),
        "verl": ("prompt", "reward_model", "id", "split"),
    }
)


def check_format(formats: Formats, name: str | None, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of ``fields``; what a table of formats does not know raises ``SpecError``."""
    if name is not None:
        check.one_of("format", name, formats)
    table = plain_table("fields", fields)
    known = {field for of, names in formats.items() if name in (None, of) for field in names}
    for field, column in table.items():
        check.one_of(f"fields: {field}", field, known)
        if not isinstance(column, str) or not column:
            raise SpecError(f"fields.{field}", f"{column!r} is no column", "name a column of the file")
    return table
