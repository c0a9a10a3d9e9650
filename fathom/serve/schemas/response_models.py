"""Response bodies for the OpenAPI document; a test validates what is sent against them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

ChatFinish = Literal["stop", "length", "tool_calls", "function_call"]


class ResponseModel(BaseModel):
    """A response has these fields and no others."""

    model_config = ConfigDict(extra="forbid")


class ErrorInfo(ResponseModel):
    """Message, type, field at fault and code of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(ResponseModel):
    """The body of every error response."""

    error: ErrorInfo


class CachedTokens(ResponseModel):
    """Details of ``prompt_tokens``."""

    cached_tokens: int


class ReasoningTokens(ResponseModel):
    """Details of ``completion_tokens``."""

    reasoning_tokens: int


class Usage(ResponseModel):
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens


class FunctionCall(ResponseModel):
    """A function's name and arguments, as a JSON string."""

    name: str
    arguments: str


class ToolCall(ResponseModel):
    """One tool call."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class TopLogprob(ResponseModel):
    """One of the most likely tokens at a position."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A generated token."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(ResponseModel):
    """Log-probabilities of all generated tokens, reasoning included."""

    content: list[TokenLogprob] | None
    refusal: None


class Extension(ResponseModel):
    """Beyond OpenAI's API: problems of tool calls, which are returned as the model wrote them."""

    problems: list[str]


class ChatMessage(ResponseModel):
    """The assistant's message. ``reasoning`` and ``reasoning_content`` hold the same text."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None
    reasoning: str | None
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = None
    fathom: Extension | None = None


class ChatCompletionChoice(ResponseModel):
    """One choice of a chat completion."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinish


class ChatCompletionResponse(ResponseModel):
    """The response of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatCompletionChoice]
    usage: Usage
    system_fingerprint: str | None


class TextLogprobs(ResponseModel):
    """Log-probabilities of all tokens, as parallel lists."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(ResponseModel):
    """One choice of a text completion."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class CompletionResponse(ResponseModel):
    """The response of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    system_fingerprint: str | None


class Embedding(ResponseModel):
    """One embedding: numbers, or the base64 of float32 in little-endian order."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(ResponseModel):
    """Token counts of an embeddings request."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(ResponseModel):
    """The response of /v1/embeddings."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class ModelCard(ResponseModel):
    """A served model; ``root`` is the name that ``id`` is an alias of, or ``id`` itself.

    ``parent`` is the base model where ``id`` is an adapter, as in vLLM. ``type``, ``display_name`` and ``created_at``
    are what Anthropic's clients read.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    type: Literal["model"]
    display_name: str
    created_at: str
    root: str
    parent: str | None
    max_model_len: int
    fathom: dict[str, Any]


class ModelList(ResponseModel):
    """The served models, all on one page."""

    object: Literal["list"]
    data: list[ModelCard]
    has_more: Literal[False]
    first_id: str
    last_id: str


class TokenizeResponse(ResponseModel):
    """The response of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeResponse(ResponseModel):
    """The response of /detokenize."""

    prompt: str


class TokenizerInfo(ResponseModel):
    """What a client needs to build prompts itself."""

    tokenizer_class: str
    bos_token: str | None
    eos_token: str
    pad_token: str | None
    vocab_size: int
    chat_template: str | None


class HealthResponse(ResponseModel):
    """The status of the server; where it is not ok, the reason."""

    status: str
