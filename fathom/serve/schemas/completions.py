"""The body of POST /v1/completions."""

from __future__ import annotations

from pydantic import Field

from fathom.serve.schemas.chat import ResponseFormat
from fathom.serve.schemas.common import SamplingRequest, TokenId


class CompletionRequest(SamplingRequest):
    """Texts to complete, or a prefix and suffix to fill in between."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    suffix: str | None = Field(None, description="Text after the completion (fill-in-the-middle).")
    echo: bool | None = Field(None, description="Return the prompt before the completion.")
    logprobs: int | None = Field(None, ge=0)
    best_of: int | None = Field(None, ge=1, description="Only n itself is supported.")
    response_format: ResponseFormat | None = None
