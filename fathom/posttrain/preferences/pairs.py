"""Pairs of a better and a worse answer: read from JSONL, and as tokens with the targets of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fathom.chat.parts import checked_message
from fathom.data.conversations.loss_mask import Sample, encode_with_loss_mask
from fathom.data.conversations.read import ROLES, ConversationProblem, ConversationReport
from fathom.errors import DataError, explain_os_error
from fathom.tokenizer import Tokenizer

Message = Mapping[str, Any]
T = TypeVar("T")
MAX_TRAILING_TOKENS = 2
"""Tokens that a template may put behind the one that ends an answer: a line's end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """What was said so far, and two messages of the assistant of which ``chosen`` is the better one."""

    messages: tuple[Message, ...]
    chosen: Message
    rejected: Message
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """A preference as tokens; of each answer only its own turn is a target. ``prompt`` names what both answer."""

    chosen: Sample
    rejected: Sample
    prompt: str


def read_preferences(path: Path, report: ConversationReport) -> Iterator[Preference]:
    """Yield the pairs of a JSONL file: ``{"messages", "chosen", "rejected"}``.

    ``messages`` end where the assistant's turn begins; the two answers are texts, or messages of the assistant, with
    ``reasoning_content`` where there is any. A bad line is reported and left out.

    Raises:
        DataError: the file cannot be read.
    """
    yield from read_lines(path, report, _preference)


def read_lines(
    path: Path, report: ConversationReport, made: Callable[[Mapping[str, Any], str], T | ConversationProblem]
) -> Iterator[T]:
    """Yield what ``made`` makes of each line's object and the line's place; report the problems that it returns.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                place = f"{path.name}, line {number}"
                found = _made(line, place, made)
                if isinstance(found, ConversationProblem):
                    report.add(found)
                else:
                    yield found
    except OSError as error:
        raise DataError(f"{path}: cannot be read, {explain_os_error(error)}") from None


def encode_pairs(
    tokenizer: Tokenizer, preferences: Iterable[Preference], report: ConversationReport, *, max_tokens: int
) -> list[PreferencePair]:
    """Return the pairs whose two sides have at most ``max_tokens`` + 1 tokens; the others are reported."""
    pairs = []
    for preference in preferences:
        try:
            chosen, rejected = (
                _answer(encode_with_loss_mask(tokenizer, [*preference.messages, answer]))
                for answer in (preference.chosen, preference.rejected)
            )
        except DataError as error:
            report.add(ConversationProblem("template", preference.place, str(error)))
            continue
        pair = PreferencePair(
            chosen=chosen, rejected=rejected, prompt=json.dumps(preference.messages, ensure_ascii=False)
        )
        problem = pair_error(pair, max_tokens, preference.place)
        if problem is not None:
            report.add(problem)
            continue
        report.used += 1
        pairs.append(pair)
    return pairs


def pair_error(pair: PreferencePair, max_tokens: int, place: str) -> ConversationProblem | None:
    """Return why nothing can be learned from a pair, or None."""
    longest = max(len(pair.chosen.tokens), len(pair.rejected.tokens))
    if longest > max_tokens + 1:
        sentence = f"{longest} tokens exceed {max_tokens + 1}; shorten it, or raise sequence_length"
        return ConversationProblem("too_long", place, sentence)
    if pair.chosen == pair.rejected:
        return ConversationProblem("nothing_learned", place, "both answers are the same; leave the pair out")
    if not (any(pair.chosen.learned) and any(pair.rejected.learned)):
        return ConversationProblem("nothing_learned", place, "the chat template hides an answer; use another template")
    return None


def problem_lines(report: ConversationReport, what: str) -> list[str]:
    """Return a report as lines, for other things than conversations."""
    return [f"{report.used} of {report.read} {what} are used", *report.lines[1:]]


def _answer(sample: Sample) -> Sample:
    """Return a sample of which only the last learned stretch is learned: the answer, not turns before it.

    Where that stretch is not at the end, the template shows the answer otherwise than it is written: none is learned.
    """
    end = max((place + 1 for place, on in enumerate(sample.learned) if on), default=0)
    start = end = end if len(sample.tokens) - end <= MAX_TRAILING_TOKENS else 0
    while start and sample.learned[start - 1]:
        start -= 1
    return Sample(sample.tokens, [start <= place < end for place in range(len(sample.tokens))])


def _made(
    line: bytes, place: str, made: Callable[[Mapping[str, Any], str], T | ConversationProblem]
) -> T | ConversationProblem:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return ConversationProblem("malformed", place, f"is no JSON ({error}); write one object a line")
    if not isinstance(row, dict):
        return ConversationProblem("malformed", place, "is no object; write one object a line")
    return made(row, place)


def _preference(row: Mapping[str, Any], place: str) -> Preference | ConversationProblem:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        return ConversationProblem("malformed", place, "has no messages; give those before the two answers")
    answers = [row.get(name) for name in ("chosen", "rejected")]
    said = [{"role": "assistant", "content": answer} if isinstance(answer, str) else answer for answer in answers]
    names = [f"messages[{index}]" for index in range(len(messages))]
    try:
        roles = _roles([*messages, *said], [*names, "chosen", "rejected"])
    except DataError as error:
        return ConversationProblem("malformed", place, str(error))
    for name, role in zip(names, roles, strict=False):
        if role not in ROLES:
            sentence = f"{name}.role: unknown value {role!r}; use one of {', '.join(ROLES)}"
            return ConversationProblem("unknown_role", place, sentence)
    if roles[-2:] != ["assistant", "assistant"]:
        sentence = f"chosen and rejected are of {' and '.join(roles[-2:])}; give answers of the assistant"
        return ConversationProblem("unknown_role", place, sentence)
    chosen, rejected = said
    assert chosen is not None
    assert rejected is not None
    return Preference(messages=tuple(messages), chosen=chosen, rejected=rejected, place=place)


def _roles(messages: Sequence[Any], names: Sequence[str]) -> list[str]:
    return [str(checked_message(message, name)["role"]) for message, name in zip(messages, names, strict=True)]
