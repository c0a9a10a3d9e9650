"""``LanguageModel.generate`` on texts: continued together by the engine, with tokens and log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeGuard

from fathom.errors import ContextError, DataError, SpecError
from fathom.inference.chat_session import (
    CHAT_DEFAULTS,
    DEFAULT_TOKENS,
    AnswerBuilder,
    ChatAnswer,
    FinishReason,
    Messages,
    RequestKwargs,
    Usage,
    as_conversation,
    make_request,
    run_many,
    split_options,
)
from fathom.inference.request_preparation import (
    ChatModel,
    ChatOptions,
    PreparedRequest,
    TextOptions,
    prepare_chat,
    prepare_text,
)
from fathom.spec.sampling import SamplingParams, TokenLogprob


class TextKwargs(RequestKwargs, total=False):
    """Keyword arguments of ``LanguageModel.generate``; ``logprobs``: how many alternatives of each token to return."""

    logprobs: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedText:
    """How a text goes on; as a string it is its ``text``.

    ``token_ids`` are the tokens drawn, without the one that ended the text, and ``logprobs`` their log-probabilities,
    as of ``TokenLogprob``; ``details`` has the alternatives where ``logprobs`` asked for them.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    usage: Usage
    details: tuple[TokenLogprob, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return self.text


def sampling_fields(params: SamplingParams | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``params`` as keyword arguments, or those ``given``.

    Raises:
        SpecError: both are given, or ``params`` is something else.
    """
    if params is None:
        return dict(given)
    if not isinstance(params, SamplingParams):
        raise SpecError(
            "params", f"is {type(params).__name__}", "give SamplingParams(...), or its fields by name: max_tokens=64"
        )
    both = sorted(given.keys() & {each.name for each in fields(SamplingParams)})
    if both:
        raise SpecError(both[0], "is given beside SamplingParams", "put it into them, or leave params out")
    return {each.name: getattr(params, each.name) for each in fields(SamplingParams)} | dict(given)


def as_texts(prompt: Any) -> Sequence[str] | None:
    """Return a text or texts as a list; None where token ids are given.

    Raises:
        DataError: a conversation is given, or texts among other things.
    """
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, Mapping) and "role" in prompt:
        raise DataError("prompt: is a message of a conversation; use chat: m.chat([message])")
    if not isinstance(prompt, list | tuple) or not prompt:
        return None
    if all(isinstance(each, str) for each in prompt):
        return prompt
    if any(isinstance(each, Mapping) for each in prompt):
        raise DataError("prompt: is a conversation; use chat: m.chat(messages)")
    for index, each in enumerate(prompt):
        if isinstance(each, str) or isinstance(prompt[0], str):
            kinds = f"{type(prompt[0]).__name__} and {type(prompt[index or 1]).__name__}"
            raise DataError(f"prompt: holds {kinds}; give texts only, or token ids only")
    return None


def is_batch(messages: Messages | Sequence[Messages]) -> TypeGuard[Sequence[Messages]]:
    """Whether several texts or conversations are given, rather than the messages of one."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        return False
    return all(isinstance(each, str | list | tuple) for each in messages)


def generate_texts(model: ChatModel, texts: Sequence[str], options: Mapping[str, Any]) -> list[GeneratedText]:
    """Continue texts together; errors name the one they are about."""
    given = dict(options)
    if given.pop("prompt_logprobs", None) is not None:
        raise SpecError("prompt_logprobs", "is not given with texts", "use m.engine.sample on token ids")
    text_options, sampling = split_options(given, TextOptions)

    def prepared(index: int) -> PreparedRequest:
        if not texts[index]:
            raise ContextError("prompt: is an empty text; give one")
        return prepare_text(model, texts[index], options=text_options)

    return [_generated(builder) for builder in _answers(model, len(texts), prepared, sampling, "prompts")]


def chat_many(
    model: ChatModel, conversations: Sequence[Messages], system: str | None, options: Mapping[str, Any]
) -> list[ChatAnswer]:
    """Answer conversations together; errors name the one they are about."""
    chat_options, sampling = split_options(options, ChatOptions)

    def prepared(index: int) -> PreparedRequest:
        return prepare_chat(model, as_conversation(model, conversations[index], system), chat_options)

    given = {**CHAT_DEFAULTS, **sampling}
    return [builder.answer for builder in _answers(model, len(conversations), prepared, given, "conversations")]


def _answers(
    model: ChatModel,
    count: int,
    prepare: Callable[[int], PreparedRequest],
    sampling: Mapping[str, Any],
    name: str,
) -> list[AnswerBuilder]:
    """Run the requests that ``prepare`` makes, all checked before the first runs; return the answers in order."""
    requests = []
    for index in range(count):
        try:
            prepared = prepare(index)
            request = make_request(model, prepared, sampling, DEFAULT_TOKENS)
            model.engine.prepare(request)
        except (ContextError, DataError) as error:
            kind = ContextError if isinstance(error, ContextError) else DataError
            raise kind(f"{name}[{index}]: {error}" if count > 1 else str(error)) from None
        requests.append((prepared, request))
    done = dict(run_many(model.engine, requests))
    return [done[index] for index in range(count)]


def _generated(builder: AnswerBuilder) -> GeneratedText:
    answer, tokens = builder.answer, builder.tokens
    return GeneratedText(
        text=answer.text,
        token_ids=answer.token_ids,
        logprobs=answer.logprobs,
        finish_reason=answer.finish_reason,
        usage=answer.usage,
        details=tokens if any(token.top for token in tokens) else (),
    )
