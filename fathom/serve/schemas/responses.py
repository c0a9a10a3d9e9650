"""The body of POST /v1/responses, after OpenAI's Responses API."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fathom.serve.schemas.chat import MAX_MESSAGES, MAX_PARTS, MAX_TOOLS, Effort
from fathom.serve.schemas.common import (
    INT64,
    MAX_TOKEN_IDS,
    MAX_TOKENS,
    WHOLE,
    Data,
    Identifier,
    JsonObject,
    Name,
    Names,
    RequestModel,
    Text,
    TokenCount,
)
from fathom.serve.schemas.ignored import IgnoredValue

JsonObjects = Annotated[list[JsonObject], Field(max_length=MAX_TOKEN_IDS, fail_fast=True)]


class Content(RequestModel):
    """A part of an item: ``input_text``, ``output_text``, ``input_image``, ``refusal``, ``reasoning_text``, ..."""

    type: Name
    text: Text | None = None
    refusal: Text | None = None
    image_url: Data | None = None
    detail: Name | None = None
    annotations: JsonObjects | None = None
    logprobs: JsonObjects | None = None


Contents = Annotated[list[Content], Field(max_length=MAX_PARTS, fail_fast=True)]


class Item(RequestModel):
    """An item of a conversation; without ``type`` it is a message. An item that was sent may be sent back."""

    type: Name | None = None
    id: Identifier | None = None
    status: Name | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Text | Contents | None = None
    call_id: Identifier | None = None
    name: Name | None = None
    arguments: Text | None = None
    output: Text | Contents | None = None
    summary: Contents | None = None
    encrypted_content: Data | None = None


class ResponsesTool(RequestModel):
    """A tool; those of other types than ``function`` run on other servers and are ignored."""

    type: Name
    name: Name | None = None
    description: Text | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class AllowedTool(RequestModel):
    """One of the tools that may be called."""

    type: Name
    name: Name | None = None


class ResponsesToolChoice(RequestModel):
    """The function to call, or the tools that may be called."""

    type: Name
    name: Name | None = None
    mode: Literal["auto", "required"] | None = None
    tools: Annotated[list[AllowedTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None


class TextFormat(RequestModel):
    """The answer's format: text, any JSON object, or JSON of a schema."""

    model_config = ConfigDict(protected_namespaces=())

    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    description: Text | None = None
    schema_: JsonObject | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(RequestModel):
    """How the text of the answer is written."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description="Returned, without effect.")


class ReasoningConfig(RequestModel):
    """How much the model reasons: effort none turns reasoning off, other values reach the template."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = Field(
        None, description="Returned, without effect: the reasoning itself is sent."
    )


class InputTokensRequest(RequestModel):
    """What a response's prompt is made of."""

    model: Name | None = None
    input: Annotated[list[Item], Field(max_length=MAX_MESSAGES, fail_fast=True)] | Text | None = None
    instructions: Text | None = None
    previous_response_id: Identifier | None = None
    conversation: IgnoredValue | None = Field(None, description="Refused: use previous_response_id.")
    tools: Annotated[list[ResponsesTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponsesToolChoice | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="auto: the earliest turns are left out where the conversation is too long."
    )
    chat_template_kwargs: JsonObject | None = Field(None, description="Variables for the chat template.")


class ResponsesRequest(InputTokensRequest):
    """A conversation to answer: its items, or those that are new since the previous response."""

    background: bool | None = Field(None, description="Only false: an answer is waited for, or streamed.")
    prompt: IgnoredValue | None = Field(None, description="Refused: no prompts are kept here.")
    include: Names | None = None
    max_output_tokens: TokenCount = None
    metadata: JsonObject | None = Field(None, description="Returned.")
    parallel_tool_calls: bool | None = Field(None, description="false: the answer ends after its first call.")
    prompt_cache_key: Identifier | None = Field(None, description="Returned, without effect.")
    safety_identifier: Identifier | None = Field(None, description="Returned, without effect.")
    user: Identifier | None = Field(None, description="Returned, without effect.")
    store: bool | None = Field(None, description="Keep the response for previous_response_id; default true.")
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: Annotated[int | None, Field(ge=-1, le=MAX_TOKENS), WHOLE] = None
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    seed: Annotated[int | None, Field(ge=-INT64, lt=INT64), WHOLE] = None
    top_logprobs: Annotated[int | None, Field(ge=0), WHOLE] = None
    cache_salt: str | None = Field(None, max_length=256)
