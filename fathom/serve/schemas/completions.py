"""The body of POST /v1/completions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fathom.serve.schemas.chat import ResponseFormat
from fathom.serve.schemas.common import WHOLE, Prompts, SamplingRequest, Text


class CompletionRequest(SamplingRequest):
    """Texts to complete, or a prefix and suffix to fill in between."""

    prompt: Prompts | None
    suffix: Text | None = Field(None, description="Text after the completion (fill-in-the-middle).")
    echo: bool | None = Field(None, description="Return the prompt before the completion.")
    logprobs: Annotated[int | None, Field(ge=0), WHOLE] = None
    best_of: Annotated[int | None, Field(ge=1, description="Only n itself is supported."), WHOLE] = None
    response_format: ResponseFormat | None = None
