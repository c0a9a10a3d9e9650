"""``LanguageModel.chat``: chat completion in this process, whole or streamed."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack

from fathom.chat.output import Delta, ToolCall
from fathom.chat.roles import ROLE_NAMES, ROLES
from fathom.engine.request import Output, Request
from fathom.errors import DataError, FathomError, SpecError
from fathom.inference.request_preparation import ChatModel, ChatOptions, PreparedRequest, TextOptions, prepare_chat
from fathom.spec.sampling import SamplingParams, TokenLogprob

if TYPE_CHECKING:
    from fathom.engine.engine import Engine

OptionsT = TypeVar("OptionsT", bound=TextOptions)
Messages = str | Sequence[Mapping[str, Any]]
FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]
DEFAULT_TOKENS = 1024
TEMPERATURE, TOP_P = 0.8, 0.95
CHAT_DEFAULTS: Mapping[str, Any] = MappingProxyType({"temperature": TEMPERATURE, "top_p": TOP_P})


class RequestKwargs(TypedDict, total=False):
    """Keyword arguments of texts and conversations: fields of ``TextOptions`` and of ``SamplingParams``."""

    stop: str | Sequence[str]
    include_stop: bool
    schema: Mapping[str, Any] | None
    json_object: bool
    regex: str | None
    grammar: str | None
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


class ChatKwargs(RequestKwargs, total=False):
    """Keyword arguments of ``LanguageModel.chat``: fields of ``ChatOptions`` and of ``SamplingParams``.

    ``stop`` may be one string. Defaults: ``max_tokens`` what fits the context, at most ``DEFAULT_TOKENS``;
    ``temperature`` ``TEMPERATURE`` and ``top_p`` ``TOP_P``, as in ``fathom chat``.
    """

    tools: Sequence[Mapping[str, Any]]
    thinking: bool | None
    thinking_budget: int | None
    continue_final_message: bool
    add_generation_prompt: bool
    variables: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts: prompt, prompt tokens found in the prefix cache, completion, and thinking within the completion."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    thinking_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAnswer:
    """One answer; as a string it is its ``text``. ``finish_reason`` "tool_calls" waits for the tools' results.

    ``token_ids`` are all tokens drawn, reasoning included but not what ended the answer, and ``logprobs`` their
    log-probabilities, as of ``TokenLogprob``.
    """

    text: str
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason
    usage: Usage = Usage()
    token_ids: tuple[int, ...] = field(default=(), repr=False)
    logprobs: tuple[float, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return self.text

    @property
    def message(self) -> dict[str, Any]:
        """The answer as an assistant message. Reasoning is left out, as templates drop it from earlier turns."""
        calls = [{"type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in self.tool_calls]
        return {"role": "assistant", "content": self.text} | ({"tool_calls": calls} if calls else {})


class AnswerBuilder:
    """Turns the outputs of one request into the deltas of its answer, and the whole answer."""

    def __init__(self, prepared: PreparedRequest) -> None:
        self._parser = prepared.parser_factory()
        self._parts = {"thinking": "", "content": ""}
        self._calls: list[ToolCall] = []
        self._tokens: list[TokenLogprob] = []
        self._usage = Usage(prompt_tokens=len(prepared.prompt_ids))
        self._end: FinishReason = "cancelled"
        self.finished = False
        """Whether the answer has ended; what the engine still draws is no part of it."""

    def push(self, output: Output) -> list[Delta]:
        """Return the deltas of an output; those held back come with the last.

        Raises:
            FathomError: the engine failed on this request.
        """
        deltas: list[Delta] = []
        for token in output.tokens:
            self._tokens.append(token)
            self._count(output)
            deltas += self._parser.push_token(token.token_id)
            if self._parser.stopped is not None:
                self._end, self.finished = "stop", True
                return self._kept(deltas)
        if output.finish_reason == "error":
            raise FathomError(f"the engine failed ({output.error}); check the model's weights")
        if output.finish_reason is not None:
            self._end, self.finished = output.finish_reason, True
            deltas += self._parser.flush()
        return self._kept(deltas)

    def flush(self) -> list[Delta]:
        """Return the deltas held back of an answer that was cut off."""
        return [] if self.finished else self._kept(self._parser.flush())

    @property
    def tokens(self) -> tuple[TokenLogprob, ...]:
        """The tokens drawn so far."""
        return tuple(self._tokens)

    @property
    def answer(self) -> ChatAnswer:
        """The answer so far."""
        called = self._calls and self._end == "stop"
        return ChatAnswer(
            text=self._parts["content"],
            thinking=self._parts["thinking"],
            tool_calls=tuple(self._calls),
            finish_reason="tool_calls" if called else self._end,
            usage=self._usage,
            token_ids=tuple(token.token_id for token in self._tokens),
            logprobs=tuple(token.logprob for token in self._tokens),
        )

    def _kept(self, deltas: list[Delta]) -> list[Delta]:
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


class ChatStream(Iterator[Delta]):
    """Iterator over the deltas of an answer; ``answer`` is the whole of it.

    ``close`` cancels the request; the deltas received so far are kept.
    """

    def __init__(self, prepared: PreparedRequest, outputs: Generator[Output, None, None]) -> None:
        self._builder = AnswerBuilder(prepared)
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
        return self._builder.answer

    def _read(self, outputs: Generator[Output, None, None]) -> Generator[Delta, None, None]:
        with closing(outputs):  # cancels the request at a stop string and when the iterator is closed
            for output in outputs:
                yield from self._builder.push(output)
                if self._builder.finished:
                    return
            yield from self._builder.flush()


def start_chat(
    model: ChatModel, messages: Messages, *, system: str | None = None, **chat_options: Unpack[ChatKwargs]
) -> ChatStream:
    """Prepare and submit a conversation; errors are raised at once, tokens are generated as the stream is read."""
    options, sampling = split_options(chat_options, ChatOptions)
    prepared = prepare_chat(model, as_conversation(model, messages, system), options)
    return ChatStream(prepared, run(model, prepared, sampling))


def split_options(given: Mapping[str, Any], kind: type[OptionsT]) -> tuple[OptionsT, dict[str, Any]]:
    """Return keyword arguments as the options of a request of ``kind``, and those left: fields of ``SamplingParams``.

    Raises:
        SpecError: an option is unknown or out of range.
    """
    sampling = dict(given)
    options = {name: sampling.pop(name) for name in option_names(kind) & sampling.keys()}
    if isinstance(options.get("stop"), str):
        options["stop"] = (options["stop"],)
    options |= {name: tuple(options[name]) for name in ("stop", "tools") if name in options}
    unknown = sorted(sampling.keys() - SAMPLING_FIELDS)
    if unknown:
        known = SAMPLING_FIELDS | option_names(kind)
        near = difflib.get_close_matches(unknown[0], known, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise SpecError(unknown[0], "is no option", f"{meant}use one of {', '.join(sorted(known))}")
    return kind(**options), sampling


def run(model: ChatModel, prepared: PreparedRequest, chat_options: Mapping[str, Any]) -> Generator[Output, None, None]:
    """Submit a prepared request with fields of ``SamplingParams``; defaults are those of ``ChatKwargs``."""
    return model.engine.outputs(make_request(model, prepared, {**CHAT_DEFAULTS, **chat_options}, DEFAULT_TOKENS))


def make_request(model: ChatModel, prepared: PreparedRequest, sampling: Mapping[str, Any], most: int) -> Request:
    """Return a request of the engine with fields of ``SamplingParams``; ``max_tokens`` is ``most`` or what fits."""
    fields = dict(sampling)
    if fields.get("max_tokens") is None:
        fields["max_tokens"] = fit_max_tokens(model, prepared, most)
    params = SamplingParams(**fields)
    stops = (*params.stop_token_ids, *prepared.stop_token_ids)
    return Request(
        prompt=prepared.prompt_ids,
        params=dataclasses.replace(params, stop_token_ids=stops),
        features_ND=prepared.features_ND,
        constraint=prepared.constraint,
    )


def run_many(
    engine: Engine, prepared: Iterable[tuple[PreparedRequest, Request]]
) -> Generator[tuple[int, AnswerBuilder], None, None]:
    """Run many requests together and yield each answer with its index, as they end.

    They are taken from ``prepared`` as the engine has places. Closing the iterator cancels those under way.

    Raises:
        FathomError: the engine failed on a request.
    """
    builders: dict[int, AnswerBuilder] = {}

    def requests() -> Iterator[Request]:
        for index, (one, request) in enumerate(prepared):
            builders[index] = AnswerBuilder(one)
            yield request

    with closing(engine.run(requests())) as outputs:
        for index, output in outputs:
            builder = builders.get(index)
            if builder is None:  # it had ended, and the engine ran on
                continue
            builder.push(output)
            if builder.finished:
                engine.cancel(output.request_id)
                yield index, builders.pop(index)


def fit_max_tokens(model: ChatModel, prepared: PreparedRequest, most: int) -> int:
    """Return the tokens that the context leaves for an answer, between 1 and ``most``."""
    return max(1, min(most, model.spec.max_position_embeddings - len(prepared.prompt_ids)))


def option_names(kind: type[TextOptions]) -> frozenset[str]:
    """Return the names of the options of a kind of request."""
    return frozenset(field.name for field in dataclasses.fields(kind))


SAMPLING_FIELDS = frozenset(field.name for field in dataclasses.fields(SamplingParams)) - {"prompt_logprobs"}
"""Sampling options of a text or conversation."""


def as_conversation(model: ChatModel, messages: Messages, system: str | None = None) -> list[Mapping[str, Any]]:
    """Return a user message or a conversation as messages, after a system message where one is given.

    Raises:
        DataError: there are none, or one is no message, or has a role that the chat template does not know.
    """
    turns: list[Any]
    if isinstance(messages, str):
        turns = [{"role": "user", "content": messages}]
    elif isinstance(messages, Mapping):
        raise DataError('messages: is one message; give a list of them: [{"role": "user", "content": "..."}]')
    elif isinstance(messages, Iterable) and not isinstance(messages, bytes):
        turns = list(messages)
    else:
        raise DataError(f"messages: is {type(messages).__name__}; give a text, or a list of messages")
    if not turns:
        raise DataError("messages: there are none; give at least one message")
    _check_roles(model, turns)
    return [{"role": "system", "content": system}, *turns] if system is not None else turns


def _check_roles(model: ChatModel, turns: Sequence[Any]) -> None:
    for index, turn in enumerate(turns):
        where = f"messages[{index}]"
        if not isinstance(turn, Mapping):
            example = '{"role": "user", "content": "..."}'
            raise DataError(f"{where}: is {type(turn).__name__} and no message; give {example}")
        role = turn.get("role")
        if role in ROLES or not isinstance(role, str):  # what is no text is refused where messages are checked
            continue
        template = model.tokenizer.chat_template or "" if model.tokenizer.can_chat else ""
        if not any(f"{mark}{role}{mark}" in template for mark in "'\""):
            near = ROLE_NAMES.get(role) or next(iter(difflib.get_close_matches(role, ROLES, n=1)), "user")
            raise DataError(
                f"{where}.role: unknown role {role!r:.40}; did you mean {near}? use one of {', '.join(ROLES)}"
            )
