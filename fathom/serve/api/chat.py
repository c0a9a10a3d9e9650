"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from fathom.engine.request import Request
from fathom.inference.request_preparation import ChatOptions, PreparedRequest, prepare_chat
from fathom.serve.api.params import (
    check_limits,
    check_prompt,
    long_prompts_refused,
    most_prompt_tokens,
    resolve_max_tokens,
    sampling_params,
    with_fair_priority,
)
from fathom.serve.api.prompts import to_template_messages
from fathom.serve.api.structured_output import structured_output_options
from fathom.serve.api.tool_calls import answer_constraint, available_tools, forces_call
from fathom.serve.api.translation import Translation
from fathom.serve.errors import refuse
from fathom.serve.http.request_body import read_body
from fathom.serve.model_pool import ModelPool
from fathom.serve.request_context import RequestContext
from fathom.serve.response.choices import ChatChoiceBuilder
from fathom.serve.response.encoder import ChoicesEncoder, ResponseEncoder, ResponseMetadata
from fathom.serve.schemas.chat import ChatCompletionRequest, Thinking
from fathom.serve.service import GenerationJob, Service


async def create_chat_completion(models: ModelPool, http: HttpRequest) -> Response:
    """Answer a conversation."""
    began = time.monotonic()
    body = await read_body(http, ChatCompletionRequest, models.executor)
    service = await models.acquire(http, body.model)
    context = service.request_context(http, body.cache_salt)
    body = with_fair_priority(body, context)
    return await service.respond(http, lambda: _job(service, body, context), stream=bool(body.stream), began=began)


def chat_job(
    service: Service,
    body: ChatCompletionRequest,
    encoder: Callable[[Sequence[ChatChoiceBuilder], int], ResponseEncoder],
    *,
    context: RequestContext,
) -> GenerationJob:
    """Preprocess a conversation; runs in a thread.

    ``encoder`` makes what writes the response from its choices and the number of the prompt's tokens.

    Raises:
        ApiError, ContextError, DataError, SpecError: a field cannot be used, or the prompt is too long.
    """
    prepared = prepare(service, body, context)
    requests, choices = _choices(service, body, prepared, context)
    written = encoder(choices, len(prepared.prompt_ids))
    return GenerationJob(requests=requests, choices=choices, per_prompt=body.choices, encoder=written)


def prepare(service: Service, body: ChatCompletionRequest, context: RequestContext) -> PreparedRequest:
    """Make a conversation's prompt and what constrains its answer; runs in a thread.

    Raises:
        ApiError, DataError, SpecError: a field cannot be used, or the prompt is too long.
    """
    limits = service.settings.limits
    if body.modalities is not None and any(kind != "text" for kind in body.modalities):
        raise refuse("modalities", f"{str(body.modalities)[:60]} has more than text", "ask for ['text']")
    if body.add_generation_prompt and body.continues:
        raise refuse("add_generation_prompt", "comes with continue_final_message or prefix", "give one of the two")
    if body.top_logprobs and not body.logprobs:
        raise refuse("top_logprobs", "is given without logprobs", "set logprobs to true")
    check_limits(body, limits, prompts=1, logprobs=body.top_logprobs, logprobs_field="top_logprobs")
    messages = to_template_messages(body.messages, service.settings)
    with long_prompts_refused(limits, service.max_model_len, "messages"):
        prepared = prepare_chat(
            service.model,
            messages,
            _options(service, body, context),
            constrain=lambda content: answer_constraint(body, service.model, content),
        )
    check_prompt(len(prepared.prompt_ids), limits, service.max_model_len, "messages")
    return prepared


def count_prompt(service: Service, translation: Translation, context: RequestContext) -> int:
    """Count the tokens of the prompt of another interface's request; runs in a thread.

    Raises:
        ApiError: as ``prepare``; it names the client's own fields.
    """
    context.notices.ignore(translation.ignored)
    return translation.names.run(lambda: len(prepare(service, translation.chat, context).prompt_ids))


def _job(service: Service, body: ChatCompletionRequest, context: RequestContext) -> GenerationJob:
    return chat_job(
        service,
        body,
        lambda choices, _: ChoicesEncoder(
            choices,
            ResponseMetadata.new("chatcmpl", service.name),
            kind="chat.completion",
            chunk_kind="chat.completion.chunk",
            usage=body.wants_usage,
        ),
        context=context,
    )


def _choices(
    service: Service, body: ChatCompletionRequest, prepared: PreparedRequest, context: RequestContext
) -> tuple[list[Request], list[ChatChoiceBuilder]]:
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if asked == 0:
        raise refuse("max_tokens", "must be 1 or more, got 0", "ask for at least one token, or leave it out")
    tokens = resolve_max_tokens(asked, len(prepared.prompt_ids), service.max_model_len, None, context)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    requests, choices = [], []
    for index in range(body.choices):
        params = sampling_params(
            body,
            vocab_size=service.model.spec.vocab_size,
            max_tokens=tokens,
            choice=index,
            stop_token_ids=prepared.stop_token_ids,
            logprobs=logprobs,
        )
        requests.append(
            Request(
                prompt=prepared.prompt_ids,
                params=params,
                priority=body.priority or 0,
                salt=context.cache_salt,
                adapter=service.adapter,
                features_ND=prepared.features_ND,
                constraint=None if prepared.constraint is None else prepared.constraint.copy(),
            )
        )
        choices.append(
            ChatChoiceBuilder(
                index,
                prepared.parser_factory(),
                service.token_formatter,
                logprobs=logprobs is not None,
                single_call=body.parallel_tool_calls is False,
                function_call=body.speaks_functions,
            )
        )
    return requests, choices


def _options(service: Service, body: ChatCompletionRequest, context: RequestContext) -> ChatOptions:
    wanted = structured_output_options(body, body.response_format, service.settings.limits)
    tools = available_tools(body, service.settings.limits)
    return ChatOptions(
        **({} if forces_call(body) else wanted),  # as with OpenAI: a format is of content, which a call is none of
        tools=tools,
        stop=tuple(body.stops),
        thinking=_thinking(body),
        thinking_budget=_budget(body),
        continue_final_message=body.continues,
        add_generation_prompt=body.add_generation_prompt is not False,
        variables=_variables(body),
        max_prompt_tokens=most_prompt_tokens(service.settings.limits, service.max_model_len),
        cache_salt=context.cache_salt,
    )


def _thinking(body: ChatCompletionRequest) -> bool | None:
    """Whether to reason: by ``thinking``, a switch of the template or ``reasoning_effort``; None leaves it to that."""
    if isinstance(body.thinking, bool):
        return body.thinking
    if body.thinking is not None and body.thinking.type in ("enabled", "disabled"):
        return body.thinking.type == "enabled"
    variables = body.chat_template_kwargs or {}
    switch = next((variables[name] for name in ("enable_thinking", "thinking") if name in variables), None)
    if isinstance(switch, bool):
        return switch
    return False if body.reasoning_effort == "none" else None


def _budget(body: ChatCompletionRequest) -> int | None:
    if body.thinking_budget is None and isinstance(body.thinking, Thinking):
        return body.thinking.budget_tokens
    return body.thinking_budget


def _variables(body: ChatCompletionRequest) -> Mapping[str, Any]:
    variables = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    return variables
