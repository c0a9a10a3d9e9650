"""POST /tokenize and /detokenize, and GET /tokenizer_info."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from fathom.errors import TooManyTokens
from fathom.inference.request_preparation import ChatOptions, prepare_chat
from fathom.serve.api.params import at_most
from fathom.serve.api.prompts import to_template_messages
from fathom.serve.errors import refuse
from fathom.serve.http.json_response import written
from fathom.serve.http.request_body import read_body
from fathom.serve.model_pool import ModelPool
from fathom.serve.request_context import RequestContext
from fathom.serve.schemas.chat import Tool
from fathom.serve.schemas.text import DetokenizeRequest, TokenizeRequest
from fathom.serve.service import Service

MAX_TOKENIZED = 1 << 19
"""Tokens that /tokenize returns and /detokenize takes."""


async def tokenize(models: ModelPool, http: HttpRequest) -> Response:
    """Return the tokens of a text or of a conversation."""
    body = await read_body(http, TokenizeRequest, models.executor)
    service = await models.acquire(http, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise refuse("prompt", "is needed, or messages, and not both", "give one of the two")
    context = service.request_context(http)
    content = await service.run(lambda: _tokenized(service, body, context))
    return Response(content, media_type="application/json")


async def detokenize(models: ModelPool, http: HttpRequest) -> Response:
    """Return the text of tokens, special tokens included."""
    body = await read_body(http, DetokenizeRequest, models.executor)
    service = await models.acquire(http, body.model)
    at_most("tokens", len(body.tokens), MAX_TOKENIZED)
    tokenizer = service.model.tokenizer
    content = await service.run(lambda: written({"prompt": tokenizer.decode(body.tokens, skip_special=False)}))
    return Response(content, media_type="application/json")


async def tokenizer_info(models: ModelPool, http: HttpRequest) -> dict[str, Any]:
    """Describe the tokenizer of the model that ``?model=`` names, for clients that build prompts themselves."""
    tokenizer = (await models.acquire(http, http.query_params.get("model"))).model.tokenizer
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.id_to_token(tokenizer.bos_id) or None,
        "eos_token": tokenizer.id_to_token(tokenizer.eos_id),
        "pad_token": tokenizer.id_to_token(tokenizer.pad_id) or None,
        "vocab_size": tokenizer.vocab_size,
        "chat_template": tokenizer.shown_template,
    }


def _tokenized(service: Service, body: TokenizeRequest, context: RequestContext) -> bytes:
    """Return the response's JSON; runs in a thread."""
    field = "prompt" if body.messages is None else "messages"
    try:
        ids = _ids(service, body, context)
    except TooManyTokens as error:
        raise refuse(field, f"about {error.tokens} tokens exceed {MAX_TOKENIZED}", "split the text") from None
    names = None
    if body.return_token_strs:
        known = {token: service.token_formatter.name(token) for token in set(ids)}
        names = [known[token] for token in ids]
    return written({"count": len(ids), "max_model_len": service.max_model_len, "tokens": ids, "token_strs": names})


def _ids(service: Service, body: TokenizeRequest, context: RequestContext) -> list[int]:
    """Encode; runs in a thread. The text of a special token becomes that token, as clients expect here."""
    tokenizer = service.model.tokenizer
    if body.prompt is not None:
        prefix = tokenizer.prefix_ids if body.add_special_tokens is not False else ()
        return [*prefix, *tokenizer.encode(body.prompt, allow_special=True, max_tokens=MAX_TOKENIZED)]
    messages = to_template_messages(body.messages or [], service.settings)
    options = ChatOptions(
        tools=tuple(tool.model_dump(exclude_none=True) for tool in body.tools or () if isinstance(tool, Tool)),
        variables=body.chat_template_kwargs or {},
        continue_final_message=bool(body.continue_final_message),
        add_generation_prompt=body.add_generation_prompt is not False,
        cache_salt=context.cache_salt,
        max_prompt_tokens=MAX_TOKENIZED,
    )
    return list(prepare_chat(service.model, messages, options).prompt_ids)
