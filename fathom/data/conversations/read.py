"""Reading conversations from JSONL files of OpenAI's messages; those that cannot be used are reported and skipped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fathom.chat.parts import checked_message
from fathom.data.conversations.loss_mask import Sample, encode_with_loss_mask
from fathom.data.conversations.templated import KeepThinking
from fathom.errors import DataError, explain_os_error
from fathom.tokenizer import Tokenizer

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_EXAMPLES = 3
Reason = Literal["malformed", "unknown_role", "template", "too_long", "nothing_learned"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages in OpenAI's format, the tools on offer, and where it comes from, for reports."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    place: str = ""


@dataclass(frozen=True, slots=True)
class ConversationProblem:
    """Why a conversation was skipped: one sentence, and the place of the conversation."""

    reason: Reason
    place: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.place}: {self.sentence}" if self.place else self.sentence


@dataclass(slots=True)
class ConversationReport:
    """Counts of used and skipped conversations; filled as they are read and encoded.

    ``left_out`` counts masked turns of used conversations. ``examples`` are the first few of each reason.
    """

    used: int = 0
    left_out: int = 0
    problems: Counter[Reason] = field(default_factory=Counter)
    examples: dict[Reason, list[ConversationProblem]] = field(default_factory=dict)

    def add(self, problem: ConversationProblem) -> None:
        """Count a problem, and keep it if it is one of the first."""
        self.problems[problem.reason] += 1
        kept = self.examples.setdefault(problem.reason, [])
        if len(kept) < MAX_EXAMPLES:
            kept.append(problem)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON, in the order that problems came."""
        examples = {reason: [[p.place, p.sentence] for p in kept] for reason, kept in self.examples.items()}
        return {
            "used": self.used,
            "left_out": self.left_out,
            "problems": dict(self.problems),
            "examples": examples,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ConversationReport:
        """Return the report that ``to_json`` gave."""
        examples = {
            reason: [ConversationProblem(reason, place, sentence) for place, sentence in kept]
            for reason, kept in stored["examples"].items()
        }
        return cls(stored["used"], stored["left_out"], Counter(stored["problems"]), examples)

    @property
    def read(self) -> int:
        """Conversations that were used or had a problem."""
        return self.used + self.problems.total()

    @property
    def lines(self) -> list[str]:
        """The report as lines to print: each reason with how often it came, and its first example."""
        lines = [f"{self.used} of {self.read} conversations are used"]
        if self.left_out:
            lines.append(f"{self.left_out} turns are masked from the loss: the chat template shows them otherwise")
        return lines + [f"{count} x {name}: {self.examples[name][0]}" for name, count in self.problems.most_common()]


def read_conversations(path: Path, report: ConversationReport) -> Iterator[Conversation]:
    """Yield the conversations of a JSONL file: ``{"messages": [...]}``, with ``"tools"`` where there are any.

    Roles are system, developer, user, assistant and tool; an assistant's reasoning stands under ``reasoning_content``
    or ``reasoning``, its calls under ``tool_calls``. A bad line is reported and skipped.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                found = _read(line, f"{path.name}, line {number}")
                if isinstance(found, Conversation):
                    yield found
                else:
                    report.add(found)
    except OSError as error:
        raise DataError(f"{path}: cannot be read, {explain_os_error(error)}") from None


def encode_conversations(
    tokenizer: Tokenizer,
    conversations: Iterable[Conversation],
    report: ConversationReport,
    *,
    max_tokens: int,
    learn: Sequence[str] = ("assistant",),
    thinking: KeepThinking = "keep",
    template: str | None = None,
) -> list[Sample]:
    """Return the conversations as samples of at most ``max_tokens`` + 1 tokens.

    One that the chat template refuses, that is longer, or of which no token is in the loss is reported and skipped.

    Raises:
        DataError: none is left; the message names the first problem.
    """
    samples = []
    for conversation in conversations:
        try:
            sample = encode_with_loss_mask(
                tokenizer,
                conversation.messages,
                learn=learn,
                tools=conversation.tools,
                thinking=thinking,
                template=template,
            )
        except DataError as error:
            report.add(ConversationProblem("template", conversation.place, str(error)))
            continue
        problem = _unusable(sample, max_tokens, learn)
        if problem is not None:
            reason, sentence = problem
            report.add(ConversationProblem(reason, conversation.place, sentence))
            continue
        report.used += 1
        report.left_out += sample.left_out
        samples.append(sample)
    if not samples:
        first = next((str(kept[0]) for kept in report.examples.values()), "there are none")
        raise DataError(f"conversations: none of {report.read} can be used ({first}); fix or add some")
    return samples


def _unusable(sample: Sample, max_tokens: int, learn: Sequence[str]) -> tuple[Reason, str] | None:
    if len(sample.tokens) > max_tokens + 1:
        return "too_long", f"{len(sample.tokens)} tokens exceed {max_tokens + 1}; shorten it, or raise sequence_length"
    if not any(sample.learned):
        return "nothing_learned", f"no turn of {' or '.join(learn)} can be trained on; add one, or change learn"
    return None


def _read(line: bytes, place: str) -> Conversation | ConversationProblem:
    """Return the conversation of a line, or what is wrong with it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return ConversationProblem("malformed", place, f"is no JSON ({error}); write one object a line")
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        return ConversationProblem("malformed", place, 'has no messages; write {"messages": [...]}')
    tools = row.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        return ConversationProblem("malformed", place, "tools: expected a list of objects; give OpenAI's format")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        try:
            role = checked_message(message, where)["role"]
        except DataError as error:
            return ConversationProblem("malformed", place, str(error))
        if role not in ROLES:
            return ConversationProblem(
                "unknown_role", place, f"{where}.role: unknown value {role!r}; use one of {', '.join(ROLES)}"
            )
    return Conversation(messages=tuple(messages), tools=tuple(tools), place=place)
