"""Response bodies of /v1/responses for the OpenAPI document, after OpenAI's Responses API."""

from __future__ import annotations

from typing import Any, Literal

from fathom.serve.schemas.response_models import ReasoningTokens, ResponseModel, TokenLogprob

Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(ResponseModel):
    """A text of the answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[dict[str, Any]]
    logprobs: list[TokenLogprob]


class ReasoningText(ResponseModel):
    """A text of the reasoning."""

    type: Literal["reasoning_text"]
    text: str


class MessageItem(ResponseModel):
    """What the assistant said."""

    type: Literal["message"]
    id: str
    status: Status
    role: Literal["assistant"]
    content: list[OutputText]


class ReasoningItem(ResponseModel):
    """The reasoning; ``encrypted_content`` is opaque and may be sent back instead of the text."""

    type: Literal["reasoning"]
    id: str
    status: Status
    summary: list[dict[str, Any]]
    content: list[ReasoningText]
    encrypted_content: str | None = None


class FunctionCallItem(ResponseModel):
    """A call of a function."""

    type: Literal["function_call"]
    id: str
    status: Status
    call_id: str
    name: str
    arguments: str


class InputDetails(ResponseModel):
    """Details of ``input_tokens``."""

    cached_tokens: int
    cache_write_tokens: int


class ResponseUsage(ResponseModel):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class ResponseObject(ResponseModel):
    """The response of /v1/responses; many of its fields repeat the request's."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    background: bool
    completed_at: int | None
    error: None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    metadata: dict[str, Any]
    model: str
    output: list[MessageItem | ReasoningItem | FunctionCallItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage
    user: str | None


class DeletedResponse(ResponseModel):
    """The response of DELETE."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputItemList(ResponseModel):
    """Items that a response was created from."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool


class InputTokens(ResponseModel):
    """The response of /v1/responses/input_tokens."""

    object: Literal["response.input_tokens"]
    input_tokens: int
