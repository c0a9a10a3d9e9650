"""The body of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field

from fathom.serve.schemas.aliases import CHAT_ALIASES, aliased_values
from fathom.serve.schemas.common import (
    MAX_TOKENS,
    WHOLE,
    Data,
    Format,
    Identifier,
    JsonObject,
    Name,
    Names,
    RequestModel,
    SamplingRequest,
    Text,
    TokenCount,
)
from fathom.serve.schemas.ignored import IgnoredFields

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
MAX_MESSAGES = 1 << 13
MAX_PARTS = 1 << 12
MAX_TOOLS = 1 << 11


class ImageUrl(RequestModel):
    """An image: a data: URI, or an http(s) URL of a host the server may fetch from."""

    url: Data


class Part(RequestModel):
    """A part of a message: text, a refusal, or an image. Types of other interfaces that mean the same are read too."""

    type: Name
    text: Text | None = None
    refusal: Text | None = None
    image_url: ImageUrl | Data | None = None


Parts = Annotated[list[Part], Field(max_length=MAX_PARTS, fail_fast=True)]


class Function(RequestModel):
    """A function that the model may call; ``parameters`` is a JSON Schema."""

    name: str = Field(min_length=1, max_length=128, pattern="^[a-zA-Z0-9_.-]+$")
    description: Text | None = None
    parameters: JsonObject | None = None
    strict: bool | None = Field(
        default=None, description="Constrain the arguments to the schema where a call is forced."
    )


class Tool(RequestModel):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


def _other(kind: str) -> str:
    if kind == "function":
        raise ValueError("a function needs its name under function")
    return kind


class OtherTool(RequestModel):
    """A tool of another type, such as ``custom`` or ``web_search``: it is ignored, so the model never calls it."""

    type: Annotated[Name, AfterValidator(_other)]


Tools = Annotated[list[Tool | OtherTool], Field(max_length=MAX_TOOLS, fail_fast=True)]


class CalledFunction(RequestModel):
    """The function of an earlier call; ``arguments`` is a JSON string or an object."""

    name: Name
    arguments: Text | JsonObject | None = None


class Call(RequestModel):
    """A tool call of an earlier assistant message."""

    id: Identifier | None = None
    type: Literal["function"] | None = None
    function: CalledFunction


class Message(RequestModel):
    """One message. The template decides whether an assistant's reasoning becomes part of the prompt."""

    role: Role
    content: Text | Parts | None = None
    name: Name | None = None
    tool_calls: Annotated[list[Call], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None
    tool_call_id: Identifier | None = None
    function_call: CalledFunction | None = Field(default=None, description="A call of OpenAI's former interface.")
    refusal: Text | None = Field(default=None, description="Stands for the content where there is none.")
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    prefix: bool | None = Field(default=None, description="The answer continues this message, the last one.")
    partial: bool | None = Field(default=None, description="The same as prefix.")


class NamedFunction(RequestModel):
    """The name of a function."""

    name: Name


class NamedTool(RequestModel):
    """The one tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(RequestModel):
    """Tools that may be called (``auto``), or one of which must be (``required``)."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


class AllowedToolsChoice(RequestModel):
    """A choice among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class JsonSchema(RequestModel):
    """A JSON Schema that the answer must satisfy."""

    model_config = ConfigDict(protected_namespaces=())

    name: Name | None = None
    description: Text | None = None
    schema_: JsonObject | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(RequestModel):
    """The answer's format: text, any JSON object, JSON of a schema, or a match of a pattern."""

    model_config = ConfigDict(protected_namespaces=())

    type: Literal["text", "json_object", "json_schema", "regex"]
    json_schema: JsonSchema | None = None
    schema_: JsonObject | None = Field(default=None, alias="schema", description="A schema without its wrapping.")
    pattern: Format | None = Field(
        default=None, description="For type regex: the pattern that the whole answer must match."
    )


class Thinking(RequestModel):
    """Whether the model reasons before it answers; adaptive and auto leave it to the template."""

    type: Literal["enabled", "disabled", "adaptive", "auto"]
    budget_tokens: Annotated[int | None, Field(ge=0, le=MAX_TOKENS), WHOLE] = None


class Reasoning(RequestModel):
    """OpenRouter's form of ``reasoning_effort`` and ``thinking``."""

    effort: Effort | None = None
    max_tokens: Annotated[int | None, Field(ge=0, le=MAX_TOKENS), WHOLE] = None
    enabled: bool | None = None


class ChatCompletionRequest(SamplingRequest):
    """A conversation to answer."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: TokenCount = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0), WHOLE] = None
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required", "any"] | NamedTool | AllowedToolsChoice | None = None
    functions: Annotated[
        Annotated[list[Function], Field(max_length=MAX_TOOLS, fail_fast=True)] | None,
        Field(description="Tools of OpenAI's former interface."),
    ] = None
    function_call: Literal["none", "auto"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = Field(default=None, description="false: the answer ends after its first call.")
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = Field(
        None, description="'none' turns reasoning off; other values reach the template."
    )
    reasoning: Reasoning | None = None
    thinking: Thinking | bool | None = None
    enable_thinking: bool | None = None
    thinking_budget: Annotated[
        int | None, Field(ge=0, le=MAX_TOKENS, description="Maximum tokens of reasoning."), WHOLE
    ] = None
    chat_template_kwargs: JsonObject | None = Field(default=None, description="Variables for the chat template.")
    add_generation_prompt: bool | None = Field(
        default=None, description="Default true, unless the last message is continued."
    )
    continue_final_message: bool | None = Field(
        None, description="The answer continues the last message, an assistant's beginning."
    )
    modalities: Names | None = Field(default=None, description="Only text can be asked for.")

    def resolved(self, ignored: IgnoredFields) -> Self:
        """Return this with the values of other names under the fields' own, and with functions as tools."""
        own = super().resolved(ignored)
        if own.max_tokens is not None and own.max_completion_tokens not in (None, own.max_tokens):
            ignored.add("max_tokens", note="max_completion_tokens has another value")
        for index, tool in enumerate(own.tools or ()):
            if isinstance(tool, OtherTool):
                ignored.add(f"tools[{index}]", note="only functions can be called")
        given: dict[str, Any] = {}
        if own.functions is not None:
            given["functions"] = [Tool(type="function", function=function) for function in own.functions]
        if isinstance(own.function_call, NamedFunction):
            given["function_call"] = NamedTool(type="function", function=own.function_call)
        values = aliased_values(own.model_copy(update=given), CHAT_ALIASES, ignored)
        legacy = own.tools is None and own.functions is not None
        return own.model_copy(update=values if legacy else {**values, "functions": None})

    @property
    def function_tools(self) -> list[Tool]:
        """The tools that can be called."""
        return [tool for tool in self.tools or () if isinstance(tool, Tool)]

    @property
    def continues(self) -> bool:
        """Whether the answer continues the last message."""
        last = self.messages[-1]
        return bool(self.continue_final_message or last.prefix or last.partial)

    @property
    def speaks_functions(self) -> bool:
        """Whether the client expects ``function_call`` in the response instead of ``tool_calls``."""
        return self.functions is not None
