"""The forms of conversations for supervised fine-tuning, as the rows of published data sets have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fathom.data.conversations.dialogue import Dialogue, read_dialogue, read_tools, text_turn, with_system
from fathom.data.forms import Column, Form, Row, optional
from fathom.data.row_report import UnusableRow

_TOOLS = optional("tools", "tools on offer, a list or its JSON text")
_FUNCTIONS = optional("functions", "tools on offer, OpenAI's legacy form")
_SYSTEM = optional("system", "the system message", "system_prompt")
_CONTEXT = (_TOOLS, _FUNCTIONS, _SYSTEM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages in OpenAI's format, the tools on offer, and where it comes from, for reports.

    ``learn`` says of each message whether it is in the loss; None, or an empty tuple, leaves that to its role.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    place: str = ""
    learn: tuple[bool | None, ...] = ()


def _conversation(dialogue: Dialogue, row: Row) -> Conversation:
    """Return a conversation with what the context columns of its row add."""
    whole = with_system(dialogue, row.get("system"))
    tools = read_tools(row.get("tools"), row.get("functions"))
    return Conversation(messages=whole.messages, tools=tools, learn=whole.learn)


def _messages(row: Row, rest: Row) -> Conversation:
    return _conversation(read_dialogue(row["messages"], "messages"), row)


def _sharegpt(row: Row, rest: Row) -> Conversation:
    return _conversation(read_dialogue(row["conversations"], "conversations"), row)


def alpaca_prompt(row: Row) -> Dialogue:
    """Return the turns before Alpaca's output: the history, the instruction, and its input on the next line."""
    dialogue = Dialogue((), ())
    history = row.get("history") or ()
    if not isinstance(history, Sequence) or isinstance(history, str):
        raise UnusableRow("history: expected a list of pairs; give [[question, answer], ...]")
    for index, pair in enumerate(history):
        where = f"history[{index}]"
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise UnusableRow(f"{where}: is no pair; give [question, answer]")
        dialogue += text_turn("user", pair[0], where) + text_turn("assistant", pair[1], where)
    given = [row["instruction"], row.get("input") or ""]
    if not all(isinstance(text, str) for text in given):
        raise UnusableRow("instruction or input is no text; give strings")
    return dialogue + text_turn("user", "\n".join(text for text in given if text.strip()), "instruction")


def _alpaca(row: Row, rest: Row) -> Conversation:
    return _conversation(alpaca_prompt(row) + text_turn("assistant", row["output"], "output"), row)


def _prompt_completion(row: Row, rest: Row) -> Conversation:
    if rest.get("label") is False:  # KTO
        raise UnusableRow("label is false: a bad answer is not learned", "nothing_learned")
    prompt = read_dialogue(row["prompt"], "prompt", "user").unlearned()
    return _conversation(prompt + read_dialogue(row["completion"], "completion", "assistant"), row)


def _question_answer(row: Row, rest: Row) -> Conversation:
    asked = text_turn("user", row["question"], "question")
    return _conversation(asked + text_turn("assistant", row["answer"], "answer"), row)


def _chosen(row: Row, rest: Row) -> Conversation:
    chosen = read_dialogue(row["chosen"], "chosen", "assistant")
    if chosen.messages[0]["role"] != "assistant":
        return _conversation(chosen, row)
    if row.get("prompt") is None:
        raise UnusableRow("has no prompt before chosen; add a column prompt")
    return _conversation(read_dialogue(row["prompt"], "prompt", "user").unlearned() + chosen, row)


CONVERSATION_FORMS: tuple[Form[Conversation], ...] = (
    Form(
        name="messages",
        title="OpenAI messages",
        columns=(Column("messages", "the turns, with role and content"), *_CONTEXT),
        convert=_messages,
    ),
    Form(
        name="sharegpt",
        title="ShareGPT conversations",
        columns=(Column("conversations", "the turns, with from and value or role and content"), *_CONTEXT),
        convert=_sharegpt,
    ),
    Form(
        name="alpaca",
        title="Alpaca instructions, or query and response",
        columns=(
            Column("instruction", "the user's turn", ("query", "question")),
            Column("output", "the assistant's turn", ("response",)),
            optional("input", "what the instruction is about, after it on a line of its own", "context"),
            optional("history", "earlier pairs of turns"),
            _SYSTEM,
        ),
        convert=_alpaca,
    ),
    Form(
        name="prompt_completion",
        title="prompt and completion",
        columns=(
            Column("prompt", "the user's turn, or messages that are not in the loss"),
            Column("completion", "the assistant's turn, or messages"),
            *_CONTEXT,
        ),
        convert=_prompt_completion,
    ),
    Form(
        name="question_answer",
        title="question and answer",
        columns=(Column("question", "the user's turn"), Column("answer", "the assistant's turn"), _SYSTEM),
        convert=_question_answer,
        explicit=True,
        advice='learns the answers as they stand; as problems they are a source of kind "worked"',
    ),
    Form(
        name="chosen",
        title="the chosen answers of preferences",
        columns=(
            Column("chosen", "the answer, or the whole conversation"),
            optional("prompt", "the user's turn, or messages that are not in the loss"),
            *_CONTEXT,
        ),
        convert=_chosen,
        explicit=True,
        advice="learns the chosen answers; pairs are for a step of kind dpo",
    ),
)
