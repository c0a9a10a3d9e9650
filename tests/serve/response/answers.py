"""Answers written down beforehand, cut into outputs as an engine gives them."""

from __future__ import annotations

import functools
import json
from typing import Any

from fathom.chat.output import OutputParser
from fathom.engine.request import Output
from fathom.serve.response.choices import ChatChoiceBuilder
from fathom.serve.response.encoder import ResponseEncoder
from fathom.serve.response.token_format import TokenFormatter
from fathom.spec.sampling import TokenLogprob
from fathom.tokenizer import Tokenizer, special, train_bpe
from tests.serve.serving import TEXT

TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("f", "g")]
V3 = f"{special.TOOL_CALL_BEGIN}function{special.TOOL_SEPARATOR}f\n```json\n{{}}\n```{special.TOOL_CALL_END}"
HERMES = '<tool_call>\n{"name": "g", "arguments": {"a": 1}}\n</tool_call>'
UNKNOWN = '<tool_call>{"name": "h", "arguments": {}}</tool_call>'
SECTION = f"{special.TOOL_CALLS_BEGIN}{V3}{V3}{special.TOOL_CALLS_END}"
FRAGMENTS = (SECTION, HERMES, UNKNOWN, "text ", "<think>", "</think>", "<tool_call>", "\n")


@functools.cache
def tokenizer() -> Tokenizer:
    return train_bpe([TEXT * 3], vocab_size=384)


def choice(*, logprobs: bool = False, stops: tuple[str, ...] = (), single_call: bool = False) -> ChatChoiceBuilder:
    parser = OutputParser(tokenizer(), tools=TOOLS, stops=stops)
    return ChatChoiceBuilder(0, parser, TokenFormatter(tokenizer()), logprobs=logprobs, single_call=single_call)


def outputs(text: str, reason: str = "stop") -> list[Output]:
    """One output a token, as an engine without drafting gives them."""
    ids = tokenizer().encode(text, allow_special=True)
    tokens = [Output(request_id=0, tokens=(TokenLogprob(token_id, -1.0),), prompt_tokens=9) for token_id in ids]
    return [*tokens, Output(request_id=0, finish_reason=reason, prompt_tokens=9, cached_tokens=4)]  # type: ignore[arg-type]


def begun(encoder: ResponseEncoder, answer: ChatChoiceBuilder, text: str, cuts: list[int], reason: str = "stop") -> str:
    """Generate an answer; return its events but the last, sent after the outputs in ``cuts`` and after the last."""
    sent = encoder.begin()
    for place, output in enumerate(outputs(text, reason)):
        if answer.finish_reason is None:
            answer.push(output)
        if place in cuts or output.finish_reason is not None:
            sent += encoder.update(answer)
    return sent


def named_events(text: str) -> list[dict[str, Any]]:
    """Return the data of server-sent events that have their type as their name."""
    found = []
    for block in text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert event["type"] == name.removeprefix("event: ")
        found.append(event)
    return found
