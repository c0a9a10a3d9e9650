"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import Sequence

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from fathom.engine.request import Request
from fathom.inference.request_preparation import PreparedRequest, TextOptions, prepare_text
from fathom.serve.api.params import (
    DEFAULT_TEXT_TOKENS,
    check_limits,
    check_prompt,
    check_prompt_logprobs,
    long_prompts_refused,
    most_prompt_tokens,
    resolve_max_tokens,
    sampling_params,
    with_fair_priority,
)
from fathom.serve.api.structured_output import structured_output_options
from fathom.serve.errors import refuse
from fathom.serve.http.request_body import read_body
from fathom.serve.model_pool import ModelPool
from fathom.serve.request_context import RequestContext
from fathom.serve.response.choices import CompletionChoiceBuilder
from fathom.serve.response.encoder import ChoicesEncoder, ResponseMetadata
from fathom.serve.schemas.completions import CompletionRequest
from fathom.serve.service import GenerationJob, Service

Prompt = str | Sequence[int]


async def create_completion(models: ModelPool, http: HttpRequest) -> Response:
    """Complete texts, or fill in the middle."""
    began = time.monotonic()
    body = await read_body(http, CompletionRequest, models.executor)
    service = await models.acquire(http, body.model)
    context = service.request_context(http, body.cache_salt)
    body = with_fair_priority(body, context)
    return await service.respond(http, lambda: _job(service, body, context), stream=bool(body.stream), began=began)


def _job(service: Service, body: CompletionRequest, context: RequestContext) -> GenerationJob:
    """Preprocess prompts; runs in a thread."""
    prompts = _prompts(body)
    limits = service.settings.limits
    check_limits(body, limits, prompts=len(prompts), logprobs=body.logprobs, logprobs_field="logprobs")
    if body.best_of is not None and body.best_of != body.choices:
        raise refuse("best_of", f"{body.best_of} is not n {body.choices}", "leave it out: all choices are returned")
    if body.suffix is not None and body.echo:
        raise refuse("echo", "comes with suffix", "leave one of the two out")
    options = TextOptions(
        **structured_output_options(body, body.response_format, limits),
        stop=tuple(body.stops),
        max_prompt_tokens=most_prompt_tokens(limits, service.max_model_len),
    )
    requests, choices, prompt_tokens = [], [], 0
    for position, prompt in enumerate(prompts):
        with long_prompts_refused(limits, service.max_model_len, "prompt"):
            prepared = prepare_text(service.model, prompt, body.suffix, options)
        check_prompt(len(prepared.prompt_ids), limits, service.max_model_len, "prompt")
        prompt_tokens += len(prepared.prompt_ids)
        if body.echo and body.logprobs is not None:
            check_prompt_logprobs(body, prompt_tokens, body.logprobs, limits)
        for number in range(body.choices):
            index = position * body.choices + number
            requests.append(_request(service, body, prepared, number, context))
            choices.append(_choice(service, body, prepared, prompt, index))
    encoder = ChoicesEncoder(
        choices,
        ResponseMetadata.new("cmpl", service.name),
        kind="text_completion",
        chunk_kind="text_completion",
        usage=body.wants_usage,
    )
    return GenerationJob(requests=requests, choices=choices, per_prompt=body.choices, encoder=encoder)


def _prompts(body: CompletionRequest) -> list[Prompt]:
    given = "" if body.prompt is None else body.prompt
    if isinstance(given, str):
        return [given]
    if not given:
        raise refuse("prompt", "is an empty list", "give a text or token ids")
    if isinstance(given[0], int):
        return [given]
    return list(given)


def _request(
    service: Service, body: CompletionRequest, prepared: PreparedRequest, number: int, context: RequestContext
) -> Request:
    scored = bool(body.echo) and body.logprobs is not None
    tokens = resolve_max_tokens(
        body.max_tokens, len(prepared.prompt_ids), service.max_model_len, DEFAULT_TEXT_TOKENS, context
    )
    params = sampling_params(
        body,
        vocab_size=service.model.spec.vocab_size,
        max_tokens=max(tokens, 1),
        choice=number,
        stop_token_ids=prepared.stop_token_ids,
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if scored else None,
        # clients that score a prompt ask for one token and drop it: it must be there, even if it is the end
        ignore_eos=bool(body.ignore_eos) or (scored and tokens <= 1),
    )
    return Request(
        prompt=prepared.prompt_ids,
        params=params,
        priority=body.priority or 0,
        salt=context.cache_salt,
        adapter=service.adapter,
        constraint=None if prepared.constraint is None else prepared.constraint.copy(),
    )


def _choice(
    service: Service, body: CompletionRequest, prepared: PreparedRequest, prompt: Prompt, index: int
) -> CompletionChoiceBuilder:
    tokenizer, ids = service.model.tokenizer, prepared.prompt_ids
    echo = None
    if body.echo:
        echo = prompt if isinstance(prompt, str) else tokenizer.decode(ids)
    return CompletionChoiceBuilder(
        index,
        prepared.parser_factory(),
        service.token_formatter,
        tokenizer.stream(continues=True),
        prompt_ids=ids,
        echo=echo,
        logprobs=body.logprobs is not None,
        prompt_only=body.max_tokens == 0,
    )
