"""POST /tokenize and /detokenize, and GET /tokenizer_info."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request as HttpRequest

from fathom.inference.request_preparation import ChatOptions, prepare_chat
from fathom.serve.api.params import at_most
from fathom.serve.api.prompts import to_template_messages
from fathom.serve.errors import refuse
from fathom.serve.http.request_body import read_body
from fathom.serve.model_pool import ModelPool
from fathom.serve.schemas.chat import Tool
from fathom.serve.schemas.text import DetokenizeRequest, TokenizeRequest
from fathom.serve.service import Service

_MAX_TOKENS = 1 << 22


async def tokenize(models: ModelPool, http: HttpRequest) -> dict[str, Any]:
    """Return the tokens of a text or of a conversation."""
    body = await read_body(http, TokenizeRequest, models.executor)
    service = await models.acquire(http, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise refuse("prompt", "is needed, or messages, and not both", "give one of the two")
    salt = service.cache_salt(http)
    ids = await service.run(lambda: _ids(service, body, salt))
    names = [service.token_formatter.name(token) for token in ids] if body.return_token_strs else None
    return {"count": len(ids), "max_model_len": service.max_model_len, "tokens": ids, "token_strs": names}


async def detokenize(models: ModelPool, http: HttpRequest) -> dict[str, Any]:
    """Return the text of tokens, special tokens included."""
    body = await read_body(http, DetokenizeRequest, models.executor)
    service = await models.acquire(http, body.model)
    at_most("tokens", len(body.tokens), _MAX_TOKENS)
    tokenizer = service.model.tokenizer
    text = await service.run(lambda: tokenizer.decode(body.tokens, skip_special=False))
    return {"prompt": text}


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


def _ids(service: Service, body: TokenizeRequest, salt: str) -> list[int]:
    """Encode; runs in a thread. The text of a special token becomes that token, as clients expect here."""
    tokenizer = service.model.tokenizer
    if body.prompt is not None:
        prefix = tokenizer.prefix_ids if body.add_special_tokens is not False else ()
        return [*prefix, *tokenizer.encode(body.prompt, allow_special=True)]
    messages = to_template_messages(body.messages or [], service.settings)
    options = ChatOptions(
        tools=tuple(tool.model_dump(exclude_none=True) for tool in body.tools or () if isinstance(tool, Tool)),
        variables=body.chat_template_kwargs or {},
        continue_final_message=bool(body.continue_final_message),
        add_generation_prompt=body.add_generation_prompt is not False,
        cache_salt=salt,
    )
    return list(prepare_chat(service.model, messages, options).prompt_ids)
