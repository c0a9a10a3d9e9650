"""The body of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from fathom.serve.schemas.common import MAX_TOKENS, WHOLE, RequestModel, SamplingRequest, TokenCount

Role = Literal["system", "developer", "user", "assistant", "tool"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ImageUrl(RequestModel):
    """An image: a data: URI, or an http(s) URL of a host the server may fetch from."""

    url: str


class Part(RequestModel):
    """A part of a message: text, or an image."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


class Function(RequestModel):
    """A function that the model may call; ``parameters`` is a JSON Schema."""

    name: str = Field(min_length=1, max_length=128, pattern="^[a-zA-Z0-9_.-]+$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="Constrain the arguments to the schema where a call is forced.")


class Tool(RequestModel):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class CalledFunction(RequestModel):
    """The function of an earlier call; ``arguments`` is a JSON string."""

    name: str
    arguments: str


class Call(RequestModel):
    """A tool call of an earlier assistant message."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(RequestModel):
    """One message. The template decides whether an assistant's reasoning becomes part of the prompt."""

    role: Role
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class NamedFunction(RequestModel):
    """The name of a function."""

    name: str


class NamedTool(RequestModel):
    """The one tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(RequestModel):
    """A JSON Schema that the answer must satisfy."""

    model_config = ConfigDict(protected_namespaces=())

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(RequestModel):
    """The answer's format: text, any JSON object, JSON of a schema, or a match of a pattern."""

    type: Literal["text", "json_object", "json_schema", "regex"]
    json_schema: JsonSchema | None = None
    pattern: str | None = Field(None, description="For type regex: the pattern that the whole answer must match.")


class Thinking(RequestModel):
    """Whether the model reasons before it answers."""

    type: Literal["enabled", "disabled"]
    budget_tokens: Annotated[int | None, Field(ge=0, le=MAX_TOKENS), WHOLE] = None


class ChatCompletionRequest(SamplingRequest):
    """A conversation to answer."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: TokenCount = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0), WHOLE] = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: the answer ends after its first call.")
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = Field(
        None, description="'none' turns reasoning off; other values reach the template."
    )
    thinking: Thinking | None = None
    thinking_budget: Annotated[
        int | None, Field(ge=0, le=MAX_TOKENS, description="Maximum tokens of reasoning."), WHOLE
    ] = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables for the chat template.")
    modalities: list[str] | None = None
