"""``LanguageModel.chat``: chat completion in this process, whole or streamed."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack

from fathom.chat.output import Delta, ToolCall
from fathom.engine.request import Output, Request
from fathom.errors import DataError, FathomError, SpecError
from fathom.inference.request_preparation import ChatModel, ChatOptions, PreparedRequest, prepare_chat
from fathom.spec.sampling import SamplingParams

Messages = str | Sequence[Mapping[str, Any]]
FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]
DEFAULT_TOKENS = 1024
TEMPERATURE, TOP_P = 0.8, 0.95


class ChatKwargs(TypedDict, total=False):
    """Keyword arguments of ``LanguageModel.chat``: fields of ``ChatOptions`` and of ``SamplingParams``.

    ``stop`` may be one string. Defaults: ``max_tokens`` what fits the context, at most ``DEFAULT_TOKENS``;
    ``temperature`` ``TEMPERATURE`` and ``top_p`` ``TOP_P``, as in ``fathom chat``.
    """

    stop: str | Sequence[str]
    include_stop: bool
    schema: Mapping[str, Any] | None
    json_object: bool
    regex: str | None
    grammar: str | None
    tools: Sequence[Mapping[str, Any]]
    thinking: bool | None
    thinking_budget: int | None
    continue_final_message: bool
    add_generation_prompt: bool
    variables: Mapping[str, Any]
    max_tokens: int | None
    min_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: tuple[tuple[int, float], ...]
    seed: int | None
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts: prompt, prompt tokens found in the prefix cache, completion, and thinking within the completion."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    thinking_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAnswer:
    """One answer; as a string it is its ``text``. ``finish_reason`` "tool_calls" waits for the tools' results."""

    text: str
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason
    usage: Usage = Usage()

    def __str__(self) -> str:
        return self.text

    @property
    def message(self) -> dict[str, Any]:
        """The answer as an assistant message. Reasoning is left out, as templates drop it from earlier turns."""
        calls = [{"type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in self.tool_calls]
        return {"role": "assistant", "content": self.text} | ({"tool_calls": calls} if calls else {})


class ChatStream(Iterator[Delta]):
    """Iterator over the deltas of an answer; ``answer`` is the whole of it.

    ``close`` cancels the request; the deltas received so far are kept.
    """

    def __init__(self, prepared: PreparedRequest, outputs: Generator[Output, None, None]) -> None:
        self._parser = prepared.parser_factory()
        self._parts = {"thinking": "", "content": ""}
        self._calls: list[ToolCall] = []
        self._usage = Usage(prompt_tokens=len(prepared.prompt_ids))
        self._end: FinishReason = "cancelled"
        self._deltas = self._read(outputs)

    def __next__(self) -> Delta:
        return next(self._deltas)

    def close(self) -> None:
        """Cancel the request."""
        self._deltas.close()

    @property
    def answer(self) -> ChatAnswer:
        """The whole answer; runs the request to its end."""
        for _ in self:
            pass
        called = self._calls and self._end == "stop"
        return ChatAnswer(
            text=self._parts["content"],
            thinking=self._parts["thinking"],
            tool_calls=tuple(self._calls),
            finish_reason="tool_calls" if called else self._end,
            usage=self._usage,
        )

    def _read(self, outputs: Generator[Output, None, None]) -> Generator[Delta, None, None]:
        with closing(outputs):  # cancels the request at a stop string and when the iterator is closed
            for output in outputs:
                for token in output.tokens:
                    self._count(output)
                    yield from self._kept(self._parser.push_token(token.token_id))
                    if self._parser.stopped is not None:
                        self._end = "stop"
                        return
                if output.finish_reason == "error":
                    raise FathomError(f"the engine failed ({output.error}); check the model's weights")
                if output.finish_reason is not None:
                    self._end = output.finish_reason
            yield from self._kept(self._parser.flush())

    def _kept(self, deltas: Sequence[Delta]) -> Sequence[Delta]:
        for delta in deltas:
            if delta.tool_call is None:
                self._parts[delta.channel] += delta.text
            else:
                self._calls.append(delta.tool_call)
        return deltas

    def _count(self, output: Output) -> None:
        self._usage = dataclasses.replace(
            self._usage,
            cached_tokens=output.cached_tokens,
            completion_tokens=self._usage.completion_tokens + 1,
            thinking_tokens=self._usage.thinking_tokens + self._parser.thinking,
        )


def start_chat(
    model: ChatModel, messages: Messages, *, system: str | None = None, **chat_options: Unpack[ChatKwargs]
) -> ChatStream:
    """Prepare and submit a conversation; errors are raised at once, tokens are generated as the stream is read."""
    given: dict[str, Any] = dict(chat_options)
    options = {name: given.pop(name) for name in _OPTIONS & given.keys()}
    if isinstance(options.get("stop"), str):
        options["stop"] = (options["stop"],)
    options |= {name: tuple(options[name]) for name in ("stop", "tools") if name in options}
    prepared = prepare_chat(model, _conversation(messages, system), ChatOptions(**options))
    return ChatStream(prepared, run(model, prepared, given))


def run(model: ChatModel, prepared: PreparedRequest, chat_options: Mapping[str, Any]) -> Generator[Output, None, None]:
    """Submit a prepared request with fields of ``SamplingParams``; defaults are those of ``ChatKwargs``."""
    unknown = sorted(chat_options.keys() - _PARAMS)
    if unknown:
        raise SpecError(unknown[0], "is no option of chat", f"use one of {', '.join(sorted(_PARAMS | _OPTIONS))}")
    fields = {"temperature": TEMPERATURE, "top_p": TOP_P} | dict(chat_options)
    if fields.get("max_tokens") is None:
        fields["max_tokens"] = fit_max_tokens(model, prepared, DEFAULT_TOKENS)
    params = SamplingParams(**fields)
    stops = (*params.stop_token_ids, *prepared.stop_token_ids)
    return model.engine.outputs(
        Request(
            prompt=prepared.prompt_ids,
            params=dataclasses.replace(params, stop_token_ids=stops),
            features_ND=prepared.features_ND,
            constraint=prepared.constraint,
        )
    )


def fit_max_tokens(model: ChatModel, prepared: PreparedRequest, most: int) -> int:
    """Return the tokens that the context leaves for an answer, between 1 and ``most``."""
    return max(1, min(most, model.spec.max_position_embeddings - len(prepared.prompt_ids)))


_OPTIONS = frozenset(field.name for field in dataclasses.fields(ChatOptions))
_PARAMS = frozenset(field.name for field in dataclasses.fields(SamplingParams)) - {"logprobs", "prompt_logprobs"}


def _conversation(messages: Messages, system: str | None) -> list[Mapping[str, Any]]:
    turns: list[Mapping[str, Any]] = (
        [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    )
    if not turns:
        raise DataError("messages: there are none; give at least one message")
    return [{"role": "system", "content": system}, *turns] if system is not None else turns
