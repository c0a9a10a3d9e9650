"""The bodies of POST /v1/messages and /v1/messages/count_tokens, after Anthropic's API."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fathom.serve.schemas.chat import MAX_MESSAGES, MAX_PARTS, MAX_TOOLS
from fathom.serve.schemas.common import MAX_TOKENS, Data, Identifier, JsonObject, Name, RequestModel, Text, Texts


class Source(RequestModel):
    """Where an image or a document comes from: base64 data, a URL, a text, or blocks."""

    type: Name
    media_type: Name | None = None
    data: Data | None = None
    url: Data | None = None
    content: Text | Blocks | None = None


class Block(RequestModel):
    """A content block; ``type`` says which of the fields it has."""

    type: Name
    text: Text | None = None
    source: Source | Text | None = None
    title: Text | None = None
    context: Text | None = None
    thinking: Text | None = None
    signature: Data | None = None
    data: Data | None = None
    id: Identifier | None = None
    name: Name | None = None
    input: JsonObject | None = None
    tool_use_id: Identifier | None = None
    content: Text | Blocks | JsonObject | None = None
    is_error: bool | None = None


Blocks = Annotated[list[Block], Field(max_length=MAX_PARTS, fail_fast=True)]


class Turn(RequestModel):
    """One turn; consecutive turns of one role are one."""

    role: Literal["user", "assistant", "system"]
    content: Text | Blocks


class MessagesTool(RequestModel):
    """A tool of the client's, with a JSON Schema of its input; tools that run on Anthropic's servers are ignored."""

    type: Name | None = None
    name: Name | None = None
    description: Text | None = None
    input_schema: JsonObject | None = None
    strict: bool | None = None


class MessagesToolChoice(RequestModel):
    """Whether tools are called."""

    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingConfig(RequestModel):
    """Whether the model reasons; ``adaptive`` leaves it to the model's template, as leaving ``thinking`` out does."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    display: Literal["summarized", "omitted"] | None = Field(
        None, description="omitted: the reasoning is not shown, only carried in the block's signature."
    )


class OutputFormat(RequestModel):
    """A JSON Schema that the answer must satisfy."""

    model_config = ConfigDict(protected_namespaces=())

    type: Literal["json_schema"]
    schema_: JsonObject = Field(alias="schema")


class OutputConfig(RequestModel):
    """The answer's format and effort."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Thread(RequestModel):
    """A conversation that the server keeps; none is kept here, so ``create`` has no effect and ``continue`` fails."""

    type: Literal["create", "continue"]
    previous_message_id: Identifier | None = None


class CountTokensRequest(RequestModel):
    """A conversation with its tools, as a message is created from it."""

    model: Name
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    system: Text | Blocks | None = None
    tools: Annotated[list[MessagesTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: MessagesToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountTokensRequest):
    """A conversation to continue. Where it ends with an assistant's turn, the answer continues that turn."""

    max_tokens: int = Field(ge=1, le=MAX_TOKENS)
    stop_sequences: Texts | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MAX_TOKENS)
    stream: bool | None = None
    thread: Thread | None = Field(None, description="continue is refused: conversations are not kept here.")
