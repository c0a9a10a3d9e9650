"""The bodies of answers, for the interface's description; a test compares what is sent with them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

ChatFinish = Literal["stop", "length", "tool_calls"]


class Answer(BaseModel):
    """Closed: what is sent has these fields and no others."""

    model_config = ConfigDict(extra="forbid")


class ErrorFacts(Answer):
    """What is wrong, in which field, and a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answer):
    """Every answer that is no success."""

    error: ErrorFacts


class CachedTokens(Answer):
    """Of the prompt."""

    cached_tokens: int


class ReasoningTokens(Answer):
    """Of the answer."""

    reasoning_tokens: int


class Usage(Answer):
    """Tokens read and drawn."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens


class CalledFunction(Answer):
    """What is called, with arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(Answer):
    """One call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class TopLogprob(Answer):
    """An alternative to a token."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    """Of every token drawn, reasoning included."""

    content: list[TokenLogprob] | None
    refusal: None


class Extension(Answer):
    """Beyond OpenAI's interface: faults of tool calls that were given as the model made them."""

    problems: list[str]


class ChatMessage(Answer):
    """The answer's turn. ``reasoning`` and ``reasoning_content`` are the same text under both names in use."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None
    reasoning: str | None
    tool_calls: list[ToolCall] | None = None
    fathom: Extension | None = None


class ChatChoice(Answer):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinish


class ChatAnswer(Answer):
    """A conversation's answers."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str | None


class TextLogprobs(Answer):
    """Of every token, one entry each in four lists."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(Answer):
    """One continuation."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class TextAnswer(Answer):
    """Texts' continuations."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    system_fingerprint: str | None


class Model(Answer):
    """A model that can be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    fathom: dict[str, Any]


class Models(Answer):
    """All models that can be asked."""

    object: Literal["list"]
    data: list[Model]


class Tokens(Answer):
    """A text's tokens."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Text(Answer):
    """Tokens' text."""

    prompt: str


class TokenizerFacts(Answer):
    """What a client needs to lay out prompts itself."""

    tokenizer_class: str
    bos_token: str | None
    eos_token: str
    pad_token: str | None
    vocab_size: int
    chat_template: str | None


class Health(Answer):
    """How the server is."""

    status: str
