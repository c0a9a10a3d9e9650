"""The bodies of POST /tokenize and /detokenize."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from fathom.serve.schemas.chat import MAX_MESSAGES, Message, OtherTool, Tool
from fathom.serve.schemas.common import RequestModel, TokenId


class TokenizeRequest(RequestModel):
    """A text, or a conversation that the chat template renders."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=MAX_MESSAGES)
    tools: Sequence[Tool | OtherTool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = Field(
        None, description="Add the beginning-of-sequence token where the tokenizer does; default true."
    )
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(RequestModel):
    """Token ids to decode."""

    model: str | None = None
    tokens: list[TokenId]
