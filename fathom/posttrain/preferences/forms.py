"""The forms of preferences, as the rows of published data sets have them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NoReturn

from fathom.data.conversations.dialogue import Dialogue, Message, read_dialogue, text_turn, with_system
from fathom.data.conversations.forms import alpaca_prompt
from fathom.data.forms import Column, Form, Row, optional
from fathom.data.row_report import UnusableRow

_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_UNPAIRED = "an answer has none to compare it with; put a good and a bad one to a prompt in a row: chosen and rejected"
_SYSTEM = optional("system", "the system message", "system_prompt")
_CHOSEN = Column("chosen", "the better answer: a text, a message, or the whole conversation", ("response_j",))
_REJECTED = Column("rejected", "the worse answer, likewise", ("response_k",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """What was said so far, and two messages of the assistant of which ``chosen`` is the better one."""

    messages: tuple[Message, ...]
    chosen: Message
    rejected: Message
    place: str = ""


def _preference(prompt: Dialogue, chosen: Dialogue, rejected: Dialogue, row: Row) -> Preference:
    """Return a pair of single answers to a prompt; turns that both begin with belong to the prompt."""
    both = list(takewhile(lambda pair: pair[0] == pair[1], zip(chosen.messages, rejected.messages, strict=False)))
    if len(both) == len(chosen.messages) == len(rejected.messages):
        raise UnusableRow("both answers are the same; leave the pair out", "nothing_learned")
    shared, answers = prompt + _part(chosen, 0, len(both)), []
    for name, dialogue in (("chosen", chosen), ("rejected", rejected)):
        rest = dialogue.messages[len(both) :]
        if len(rest) != 1:
            raise UnusableRow(f"{name}: {len(rest)} messages differ from the other answer's; give one answer each")
        if rest[0]["role"] != "assistant":
            sentence = f"{name}: is of the role {rest[0]['role']}; give an answer of the assistant"
            raise UnusableRow(sentence, "unknown_role")
        if not rest[0].get("content") and not rest[0].get("tool_calls"):
            raise UnusableRow(f"{name}: is empty; fill it, or remove the row")
        answers.append(rest[0])
    messages = with_system(shared, row.get("system")).messages
    if not any(message["role"] != "system" for message in messages):
        raise UnusableRow("has no prompt before the answers; add a column prompt")
    return Preference(messages=messages, chosen=answers[0], rejected=answers[1])


def _part(dialogue: Dialogue, start: int, end: int) -> Dialogue:
    return Dialogue(dialogue.messages[start:end], dialogue.learn[start:end])


def _answers(row: Row) -> tuple[Dialogue, Dialogue]:
    chosen, rejected = (read_dialogue(row[name], name, "assistant") for name in ("chosen", "rejected"))
    return chosen, rejected


def _prompted(row: Row, rest: Row) -> Preference:
    """Answers to a prompt; one that they repeat as a conversation is theirs, as TRL extracts it."""
    if _is_hh(row["prompt"]):
        answers = [text_turn("assistant", _stripped(row[name]), name) for name in ("chosen", "rejected")]
        return _preference(_hh_turns(str(row["prompt"]), "prompt"), answers[0], answers[1], row)
    chosen, rejected = _answers(row)
    whole = all(answer.messages[0]["role"] != "assistant" for answer in (chosen, rejected))
    prompt = Dialogue((), ()) if whole else read_dialogue(row["prompt"], "prompt", "user")
    return _preference(prompt, chosen, rejected, row)


def _implicit(row: Row, rest: Row) -> Preference:
    """Two conversations with a common beginning, as messages or as the text of Anthropic's HH."""
    chosen, rejected = (
        _hh_turns(row[name], name) if _is_hh(row[name]) else read_dialogue(row[name], name, "assistant")
        for name in ("chosen", "rejected")
    )
    return _preference(Dialogue((), ()), chosen, rejected, row)


def _after_messages(row: Row, rest: Row) -> Preference:
    chosen, rejected = _answers(row)
    whole = all(answer.messages[0]["role"] != "assistant" for answer in (chosen, rejected))
    prompt = Dialogue((), ()) if whole else read_dialogue(row["messages"], "messages")
    return _preference(prompt, chosen, rejected, row)


def _alpaca(row: Row, rest: Row) -> Preference:
    return _preference(alpaca_prompt(row), *_answers(row), row)


def _input(row: Row, rest: Row) -> Preference:
    return _prompted({**row, "prompt": row["input"]}, rest)


def _openai(row: Row, rest: Row) -> Preference:
    asked = row["input"].get("messages") if isinstance(row["input"], Mapping) else row["input"]
    chosen, rejected = (read_dialogue(row[n], n, "assistant") for n in ("preferred_output", "non_preferred_output"))
    return _preference(read_dialogue(asked, "input.messages", "user"), chosen, rejected, row)


def _ultrafeedback(row: Row, rest: Row) -> Preference:
    """Pair the completion of the highest overall score with that of the lowest."""
    scored: list[tuple[float, Dialogue]] = []
    for index, completion in enumerate(row["completions"] if isinstance(row["completions"], Sequence) else ()):
        score = completion.get("overall_score") if isinstance(completion, Mapping) else None
        if isinstance(score, int | float) and math.isfinite(score):
            answer = read_dialogue(completion.get("response"), f"completions[{index}].response", "assistant")
            scored.append((float(score), answer))
    if len(scored) < 2:
        raise UnusableRow("completions: fewer than two have an overall_score; give two or more")
    (best, chosen), (worst, rejected) = (choose(scored, key=lambda pair: pair[0]) for choose in (max, min))
    if best == worst:
        raise UnusableRow("completions: all have one overall_score, and none is better", "nothing_learned")
    return _preference(text_turn("user", row["instruction"], "instruction"), chosen, rejected, row)


def _unpaired(row: Row, rest: Row) -> NoReturn:
    raise UnusableRow(_UNPAIRED)


def _is_hh(value: Any) -> bool:
    return isinstance(value, str) and _HH_TURN.match("\n\n" + value.lstrip()) is not None


def _stripped(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _hh_turns(text: str, where: str) -> Dialogue:
    """Return the turns of a text of Anthropic's HH; an empty last one of the assistant is where answers begin."""
    _, *parts = _HH_TURN.split("\n\n" + text.lstrip())
    dialogue = Dialogue((), ())
    for index in range(0, len(parts), 2):
        spoken = parts[index + 1].strip()
        if not spoken and index == len(parts) - 2 and where == "prompt":
            break
        dialogue += text_turn("user" if parts[index] == "Human" else "assistant", spoken, where)
    return dialogue


def _conversations(row: Row) -> bool:
    """Whether both answers are conversations, or texts of Anthropic's HH."""
    return all(isinstance(row[name], list) or _is_hh(row[name]) for name in ("chosen", "rejected"))


PREFERENCE_FORMS: tuple[Form[Preference], ...] = (
    Form(
        name="preference",
        title="TRL preferences with a prompt",
        columns=(Column("prompt", "what both answer: a text or messages", ("question",)), _CHOSEN, _REJECTED, _SYSTEM),
        convert=_prompted,
        over=("implicit_prompt", "messages"),
    ),
    Form(
        name="messages",
        title="messages and two answers",
        columns=(Column("messages", "what both answer", ("conversations", "trajectory")), _CHOSEN, _REJECTED, _SYSTEM),
        convert=_after_messages,
        over=("implicit_prompt",),
    ),
    Form(
        name="implicit_prompt",
        title="two conversations with a common beginning (TRL, Anthropic HH)",
        columns=(_CHOSEN, _REJECTED, _SYSTEM),
        convert=_implicit,
        shape=_conversations,
    ),
    Form(
        name="alpaca",
        title="Alpaca instructions with two answers (LLaMA-Factory)",
        columns=(
            Column("instruction", "the user's turn"),
            _CHOSEN,
            _REJECTED,
            optional("input", "what the instruction is about, after it on a line of its own"),
            _SYSTEM,
        ),
        convert=_alpaca,
        over=("implicit_prompt", "input"),
    ),
    Form(
        name="input",
        title="an input and two answers (Argilla)",
        columns=(Column("input", "what both answer: a text or messages"), _CHOSEN, _REJECTED, _SYSTEM),
        convert=_input,
        over=("implicit_prompt",),
    ),
    Form(
        name="openai",
        title="OpenAI preferences",
        columns=(
            Column("input", "what both answer, under messages"),
            Column("preferred_output", "the better answer"),
            Column("non_preferred_output", "the worse answer"),
        ),
        convert=_openai,
    ),
    Form(
        name="ultrafeedback",
        title="UltraFeedback completions with scores",
        columns=(
            Column("instruction", "the user's turn"),
            Column("completions", "answers with an overall_score: the best and the worst make the pair"),
        ),
        convert=_ultrafeedback,
    ),
    Form(
        name="kto",
        title="single answers with a label (KTO)",
        columns=(
            Column("prompt", "the user's turn, or messages"),
            Column("completion", "one answer"),
            Column("label", "whether it is a good one"),
        ),
        convert=_unpaired,
        refusal=_UNPAIRED,
    ),
)
