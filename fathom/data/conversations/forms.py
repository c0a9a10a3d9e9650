"""The forms of conversations for supervised fine-tuning, as the rows of published data sets have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from fathom.data.conversations.dialogue import Dialogue, read_dialogue, read_tools, text_turn, with_system
from fathom.data.conversations.templated import said
from fathom.data.forms import Column, Form, Row, optional
from fathom.data.row_report import UnusableRow
from fathom.data.validation_split import text_key

_TOOLS = optional("tools", "tools on offer, a list or its JSON text")
_FUNCTIONS = optional("functions", "tools on offer, OpenAI's legacy form")
_SYSTEM = optional("system", "the system message", "system_prompt")
_CONTEXT = (_TOOLS, _FUNCTIONS, _SYSTEM)
_ASKED = (
    Column("question", "the user's turn", ("problem",)),
    optional("context", "stands before it", "body", "passage"),
)
_TREE = "a message is no conversation; write each path from a prompt to an answer as a row with messages"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages in OpenAI's format, the tools on offer, and where it comes from, for reports.

    ``learn`` says of each message whether it is in the loss; None, or an empty tuple, leaves that to its role.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    place: str = ""
    learn: tuple[bool | None, ...] = ()

    @property
    def key(self) -> int:
        """A hash of what is said: a conversation has the same key in every dialect."""
        return text_key([said(self.messages), [tool.get("function", tool) for tool in self.tools]])


def _conversation(dialogue: Dialogue, row: Row) -> Conversation:
    """Return a conversation with what the context columns of its row add; an empty learned answer is refused."""
    for index, (message, learned) in enumerate(zip(dialogue.messages, dialogue.learn, strict=True)):
        if message["role"] == "assistant" and learned is not False and _is_empty(message):
            raise UnusableRow(f"turn {index + 1}, of the assistant, is empty; fill it, or remove the row")
    whole = with_system(dialogue, row.get("system"))
    tools = read_tools(row.get("tools"), row.get("functions"))
    return Conversation(messages=whole.messages, tools=tools, learn=whole.learn)


def _is_empty(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    said = content.strip() if isinstance(content, str) else content
    return not any((said, message.get("tool_calls"), message.get("reasoning_content"), message.get("reasoning")))


def _turns(name: str, row: Row, rest: Row) -> Conversation:
    dialogue = read_dialogue(row[name], name)
    if {"chosen", "rejected"} <= rest.keys() and dialogue.messages[-1]["role"] != "assistant":
        raise UnusableRow(
            f'{name}: ends before the answers chosen and rejected; set format = "chosen"', "nothing_learned"
        )
    return _conversation(dialogue, row)


def _messages(row: Row, rest: Row) -> Conversation:
    return _turns("messages", row, rest)


def _sharegpt(row: Row, rest: Row) -> Conversation:
    return _turns("conversations", row, rest)


def _called(row: Row, rest: Row) -> Conversation:
    calls = read_dialogue([{"role": "function_call", "content": row["answers"]}], "answers")
    return _conversation(text_turn("user", row["query"], "query") + calls, row)


def _tree(row: Row, rest: Row) -> NoReturn:
    raise UnusableRow(_TREE)


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


def _completes(values: Row) -> bool:
    return isinstance(values["completion"], str | list | Mapping)


def _asked(row: Row) -> Dialogue:
    if row.get("context") is not None and not isinstance(row["context"], str):
        raise UnusableRow("context: is no text; give a string")
    texts = [row["context"], row["question"]] if str(row.get("context") or "").strip() else [row["question"]]
    return text_turn("user", "\n".join(texts) if isinstance(texts[-1], str) else texts[-1], "question")


def _question_answer(row: Row, rest: Row) -> Conversation:
    return _conversation(_asked(row) + text_turn("assistant", row["answer"], "answer"), row)


def _solution(row: Row, rest: Row) -> Conversation:
    return _conversation(_asked(row) + text_turn("assistant", row["solution"], "solution"), row)


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
        columns=(
            Column("conversations", "the turns, with from and value or role and content", ("conversation", "items")),
            *_CONTEXT,
        ),
        convert=_sharegpt,
    ),
    Form(
        name="alpaca",
        title="Alpaca instructions, or query and response",
        columns=(
            Column("instruction", "the user's turn", ("query", "question", "problem")),
            Column("output", "the assistant's turn", ("response", "generated_solution")),
            optional("input", "what the instruction is about, after it on a line of its own", "context"),
            optional("history", "earlier pairs of turns"),
            _SYSTEM,
        ),
        convert=_alpaca,
        over=("prompt_completion",),
    ),
    Form(
        name="prompt_completion",
        title="prompt and completion",
        columns=(
            Column("prompt", "the user's turn, or messages that are not in the loss", ("input", "inputs")),
            Column("completion", "the assistant's turn, or messages", ("response", "output", "target", "targets")),
            *_CONTEXT,
        ),
        convert=_prompt_completion,
        shape=_completes,
    ),
    Form(
        name="function_calls",
        title="a query and the calls that answer it (xLAM)",
        columns=(
            Column("query", "the user's turn"),
            Column("answers", "the assistant's calls, a list or its JSON text"),
            Column("tools", "tools on offer, a list or its JSON text"),
            _SYSTEM,
        ),
        convert=_called,
    ),
    Form(
        name="message_tree",
        title="messages of trees (OpenAssistant)",
        columns=(Column("message_tree_id", "the tree"), Column("text", "one message", ("prompt",))),
        convert=_tree,
        refusal=_TREE,
    ),
    Form(
        name="question_answer",
        title="question and answer",
        columns=(*_ASKED, Column("answer", "the assistant's turn"), _SYSTEM),
        convert=_question_answer,
        explicit=True,
        advice='learns the answers as they stand; as problems they are a source of kind "worked"',
    ),
    Form(
        name="solution",
        title="question and worked solution",
        columns=(*_ASKED, Column("solution", "the assistant's turn"), _SYSTEM),
        convert=_solution,
        explicit=True,
        advice="learns the solutions as they stand",
    ),
    Form(
        name="chosen",
        title="the chosen answers of preferences",
        columns=(
            Column("chosen", "the answer, or the whole conversation"),
            optional("prompt", "the user's turn, or messages that are not in the loss", "conversations", "messages"),
            *_CONTEXT,
        ),
        convert=_chosen,
        explicit=True,
        advice="learns the chosen answers; pairs are for a step of kind dpo",
    ),
)
