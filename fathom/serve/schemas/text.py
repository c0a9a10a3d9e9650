"""The bodies of POST /tokenize and /detokenize."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fathom.serve.schemas.chat import MAX_MESSAGES, Message, Tools
from fathom.serve.schemas.common import JsonObject, Name, RequestModel, Text, TokenIds


class TokenizeRequest(RequestModel):
    """A text, or a conversation that the chat template renders."""

    model: Name | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    tools: Tools | None = None
    chat_template_kwargs: JsonObject | None = None
    add_special_tokens: bool | None = Field(
        None, description="Add the beginning-of-sequence token where the tokenizer does; default true."
    )
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(RequestModel):
    """Token ids to decode."""

    model: Name | None = None
    tokens: TokenIds
