"""The bodies of answers, for the interface's description; a test compares what is sent with them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

ChatFinish = Literal["stop", "length", "tool_calls"]


class ResponseModel(BaseModel):
    """Closed: what is sent has these fields and no others."""

    model_config = ConfigDict(extra="forbid")


class ErrorInfo(ResponseModel):
    """What is wrong, in which field, and a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(ResponseModel):
    """Every answer that is no success."""

    error: ErrorInfo


class CachedTokens(ResponseModel):
    """Of the prompt."""

    cached_tokens: int


class ReasoningTokens(ResponseModel):
    """Of the answer."""

    reasoning_tokens: int


class Usage(ResponseModel):
    """Tokens read and drawn."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens


class FunctionCall(ResponseModel):
    """What is called, with arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(ResponseModel):
    """One call of a tool."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class TopLogprob(ResponseModel):
    """An alternative to a token."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(ResponseModel):
    """Of every token drawn, reasoning included."""

    content: list[TokenLogprob] | None
    refusal: None


class Extension(ResponseModel):
    """Beyond OpenAI's interface: faults of tool calls that were given as the model made them."""

    problems: list[str]


class ChatMessage(ResponseModel):
    """The answer's turn. ``reasoning`` and ``reasoning_content`` are the same text under both names in use."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None
    reasoning: str | None
    tool_calls: list[ToolCall] | None = None
    fathom: Extension | None = None


class ChatCompletionChoice(ResponseModel):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinish


class ChatCompletionResponse(ResponseModel):
    """A conversation's answers."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatCompletionChoice]
    usage: Usage
    system_fingerprint: str | None


class TextLogprobs(ResponseModel):
    """Of every token, one entry each in four lists."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(ResponseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class CompletionResponse(ResponseModel):
    """Texts' continuations."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    system_fingerprint: str | None


class ModelCard(ResponseModel):
    """A model that can be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    fathom: dict[str, Any]


class ModelList(ResponseModel):
    """All models that can be asked."""

    object: Literal["list"]
    data: list[ModelCard]


class TokenizeResponse(ResponseModel):
    """A text's tokens."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeResponse(ResponseModel):
    """Tokens' text."""

    prompt: str


class TokenizerInfo(ResponseModel):
    """What a client needs to lay out prompts itself."""

    tokenizer_class: str
    bos_token: str | None
    eos_token: str
    pad_token: str | None
    vocab_size: int
    chat_template: str | None


class HealthResponse(ResponseModel):
    """How the server is."""

    status: str
