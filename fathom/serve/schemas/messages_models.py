"""Response bodies of /v1/messages for the OpenAPI document, after Anthropic's API."""

from __future__ import annotations

from typing import Any, Literal

from fathom.serve.schemas.response_models import ResponseModel


class ThinkingTokens(ResponseModel):
    """Details of ``output_tokens``."""

    thinking_tokens: int


class MessageUsage(ResponseModel):
    """Token counts; the prompt's are ``input_tokens`` and ``cache_read_input_tokens`` together."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingTokens
    service_tier: Literal["standard"]


class TextBlock(ResponseModel):
    """A text."""

    type: Literal["text"]
    text: str


class ThinkingBlock(ResponseModel):
    """The model's reasoning; ``signature`` is opaque."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseBlock(ResponseModel):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class MessageResponse(ResponseModel):
    """The response of /v1/messages."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    stop_details: None
    usage: MessageUsage


class TokensCount(ResponseModel):
    """The response of /v1/messages/count_tokens."""

    input_tokens: int


class AnthropicErrorDetails(ResponseModel):
    """A code that Anthropic's clients act on."""

    error_code: str


class AnthropicErrorInfo(ResponseModel):
    """Type and message of an error, and details where clients act on them."""

    type: str
    message: str
    details: AnthropicErrorDetails | None = None


class AnthropicErrorResponse(ResponseModel):
    """The body of every error response of Anthropic's routes."""

    type: Literal["error"]
    error: AnthropicErrorInfo
    request_id: str
