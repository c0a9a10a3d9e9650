"""From a request's fields to sampling parameters, within the server's limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from fathom.errors import TooManyTokens
from fathom.serve.errors import ApiError, refuse
from fathom.serve.request_context import RequestContext
from fathom.serve.schemas.common import SamplingRequest
from fathom.serve.schemas.ignored import IgnoredFields
from fathom.serve.settings import Limits
from fathom.spec.sampling import SamplingParams

B = TypeVar("B", bound=SamplingRequest)
_LEAST_TOP_P = 1e-6
DEFAULT_TEXT_TOKENS = 16
"""OpenAI's default of ``max_tokens`` for /v1/completions."""


def check_limits(
    body: SamplingRequest, limits: Limits, *, prompts: int, logprobs: int | None, logprobs_field: str
) -> None:
    """Refuse a request that exceeds the server's limits.

    Raises:
        ApiError: names the field, its value and the limit.
    """
    at_most("n", body.choices, limits.n)
    if prompts * body.choices > limits.choices:
        raise refuse(
            "prompt", f"{prompts} prompts times n {body.choices} exceed {limits.choices} choices", "split the request"
        )
    if logprobs is not None:
        at_most(logprobs_field, logprobs, limits.logprobs)
    stops = body.stops
    if len(stops) > limits.stop_strings:
        raise refuse("stop", f"{len(stops)} texts exceed {limits.stop_strings}", "give fewer")
    for index, stop in enumerate(stops):
        if not 1 <= len(stop) <= limits.stop_chars:
            raise refuse(f"stop[{index}]", f"has {len(stop)} characters", f"give 1 to {limits.stop_chars}")
    if body.logit_bias and len(body.logit_bias) > limits.logit_bias:
        raise refuse("logit_bias", f"{len(body.logit_bias)} entries exceed {limits.logit_bias}", "give fewer")


def check_prompt_logprobs(body: SamplingRequest, tokens: int, logprobs: int, limits: Limits) -> None:
    """Refuse log-probabilities of ``tokens`` of prompts, with ``logprobs`` alternatives each, beyond the limit."""
    values = tokens * body.choices * (logprobs + 1)
    if values > limits.prompt_logprobs:
        raise refuse(
            "logprobs",
            f"{values} log-probabilities of echoed prompts exceed {limits.prompt_logprobs}",
            "send fewer prompts in a request, or ask for fewer alternatives",
        )


def with_fair_priority(body: B, context: RequestContext) -> B:
    """Return a request without a priority over other keys' requests, which is named as ignored."""
    if not body.priority or context.prioritized:
        return body
    ignored = IgnoredFields()
    ignored.add("priority", note="several keys share the engine")
    context.notices.ignore(ignored)
    return body.model_copy(update={"priority": None})


def at_most(field: str, value: int, most: int) -> None:
    """Refuse a number above the server's limit."""
    if value > most:
        raise refuse(field, f"{value} exceeds {most}, the most this server allows", f"give at most {most}")


def check_prompt(tokens: int, limits: Limits, max_model_len: int, field: str) -> None:
    """Refuse a prompt that does not leave space for at least one generated token.

    The message has Anthropic's words and OpenAI's: clients such as Claude Code and LiteLLM shorten the conversation, or
    turn to another model, where they read them.
    """
    most = most_prompt_tokens(limits, max_model_len)
    if tokens > most:
        raise ApiError(
            400,
            f"{field}: prompt is too long: {tokens} tokens > {most} maximum (this model's maximum context length is "
            f"{max_model_len} tokens); shorten it",
            param=field,
            code="context_length_exceeded",
        )


def most_prompt_tokens(limits: Limits, max_model_len: int) -> int:
    """Return how many tokens a prompt may have."""
    return max_model_len - 1 if limits.prompt_tokens is None else min(limits.prompt_tokens, max_model_len - 1)


@contextmanager
def long_prompts_refused(limits: Limits, max_model_len: int, field: str) -> Iterator[None]:
    """Refuse, as ``check_prompt`` does, a prompt that was not read to its end, by the tokens it has about."""
    try:
        yield
    except TooManyTokens as error:
        check_prompt(error.tokens, limits, max_model_len, field)
        raise


def resolve_max_tokens(
    asked: int | None, prompt: int, max_model_len: int, default: int | None, context: RequestContext
) -> int:
    """Return how many tokens to generate: what was asked, or ``default``, or all that fit if that is less.

    A negative number asks for all that fit, or that the request's key allows. A notice says where that is fewer than
    asked.
    """
    available = max_model_len - prompt
    if context.max_tokens is not None:
        available = min(available, context.max_tokens)
    if asked is None:
        return max(1, available if default is None else min(default, available))
    if asked > available:
        context.notices.clamp("max_tokens", available)
    return available if asked < 0 else min(asked, available)


def sampling_params(
    body: SamplingRequest,
    *,
    vocab_size: int,
    max_tokens: int,
    choice: int,
    stop_token_ids: Sequence[int] = (),
    **more: Any,
) -> SamplingParams:
    """Return the sampling parameters of one choice; with a seed, choice i of a request uses seed + i."""
    given = {
        name: value
        for name in (
            "temperature",
            "min_p",
            "min_tokens",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
        )
        if (value := getattr(body, name)) is not None
    }
    if body.top_p is not None:
        given["top_p"] = max(body.top_p, _LEAST_TOP_P)
    return SamplingParams(
        **given,
        max_tokens=max_tokens,
        top_k=max(body.top_k or 0, 0),
        seed=None if body.seed is None else (body.seed + choice) % (1 << 63),
        ignore_eos=more.pop("ignore_eos", bool(body.ignore_eos)),
        stop_token_ids=tuple(sorted({*(body.stop_token_ids or ()), *stop_token_ids})),
        logit_bias=_biases(body.logit_bias or {}, vocab_size),
        **more,
    )


def _biases(given: dict[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    biases = {}
    for name, bias in given.items():
        if not (name.isascii() and name.isdigit() and len(name) < 12 and int(name) < vocab_size):
            raise refuse(f"logit_bias.{name[:40]}", "is not a token id", f"use ids below {vocab_size}, as strings")
        biases[int(name)] = bias
    return tuple(sorted(biases.items()))
