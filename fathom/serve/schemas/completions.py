"""The body of POST /v1/completions."""

from __future__ import annotations

from pydantic import Field

from fathom.serve.schemas.chat import ResponseFormat
from fathom.serve.schemas.common import SamplingRequest, TokenId


class CompletionRequest(SamplingRequest):
    """Texts to continue, or one text's hole to fill."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    suffix: str | None = Field(None, description="What follows the hole; the model fills it in.")
    echo: bool | None = Field(None, description="Begin the text with the prompt.")
    logprobs: int | None = Field(None, ge=0)
    best_of: int | None = Field(None, ge=1, description="Only n itself is supported.")
    response_format: ResponseFormat | None = None
