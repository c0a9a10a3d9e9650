"""Thinking, answer and final answer of a text with R1's tags, or without any."""

from __future__ import annotations

from dataclasses import dataclass

from fathom.data.problems.answer_text import after_hashes, bare_text, concluding_line, last_line
from fathom.data.problems.gold import last_boxed

THINK_BEGIN, THINK_END = "<think>", "</think>"
ANSWER_BEGIN, ANSWER_END = "<answer>", "</answer>"
TAGS = (THINK_BEGIN, THINK_END, ANSWER_BEGIN, ANSWER_END)
MAX_FINAL_CHARS = 8192
"""Only so much of an answer's end is looked at for what it concludes."""


@dataclass(frozen=True, slots=True)
class ReasoningSplit:
    """What a model thought and what it answered, both without tags and outer white space."""

    thinking: str
    answer: str


def split_reasoning(text: str) -> ReasoningSplit:
    """Split a text; the last tags of each kind count.

    Without think tags everything before the answer's tags is thinking, and without any tag all is answer. Thinking
    that never ends has no answer.
    """
    before, closed, after = text.rpartition(THINK_END)
    if closed:
        _, opened, inside = before.partition(THINK_BEGIN)
        return ReasoningSplit((inside if opened else before).strip(), _answer_inside(after))
    before, opened, after = text.partition(THINK_BEGIN)
    if opened:
        return ReasoningSplit(after.strip(), "")
    if ANSWER_BEGIN in text:
        return ReasoningSplit(text.rpartition(ANSWER_BEGIN)[0].strip(), _answer_inside(text))
    return ReasoningSplit("", text.strip())


def thinking_span(text: str) -> tuple[int, int]:
    """Return where a text's thinking starts and ends (``split_reasoning``); a text without a tag is all thinking."""
    closed = text.rfind(THINK_END)
    opened = text.find(THINK_BEGIN, 0, len(text) if closed < 0 else closed)
    start = 0 if opened < 0 else opened + len(THINK_BEGIN)
    if closed >= 0:
        return start, closed
    if opened >= 0 or ANSWER_BEGIN not in text:
        return start, len(text)
    return 0, text.rfind(ANSWER_BEGIN)


def final_answer(text: str) -> str | None:
    """What a text concludes, or None where it concludes nothing.

    It is looked for inside the last answer tags, else after the thinking, else everywhere: the last ``\\boxed{}`` or
    ``\\fbox{}``, else what follows the last ``####`` on its line, else the line that announces an answer
    (``concluding_line``), else all that stands in answer tags, else the last line.
    """
    answer = split_reasoning(text).answer
    region = answer[-MAX_FINAL_CHARS:]
    found = last_boxed(region)
    if found is None:
        found = after_hashes(region)
    if found is None:
        found = concluding_line(region)
    if found is None:
        found = region if ANSWER_BEGIN in text else last_line(region)
    return found.strip() or None


def stated_answer(text: str) -> str | None:
    """The final answer without what surrounds it (``bare_text``), as votes among several answers compare them."""
    found = final_answer(text)
    return None if found is None else bare_text(found) or found


def _answer_inside(text: str) -> str:
    _, opened, inside = text.rpartition(ANSWER_BEGIN)
    return (inside.partition(ANSWER_END)[0] if opened else text).strip()
