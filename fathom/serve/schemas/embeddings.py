"""The body of POST /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fathom.serve.schemas.common import WHOLE, Name, Prompts, RequestModel
from fathom.serve.schemas.ignored import IgnoredValue


class EmbeddingRequest(RequestModel):
    """A text, texts, token ids, or lists of token ids."""

    model: Name | None = None
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="Numbers, or the base64 of float32 in little-endian order; default float."
    )
    dimensions: Annotated[int | None, Field(ge=1, description="Keep the first dimensions only."), WHOLE] = None
    pooling: Literal["mean", "last"] | None = Field(
        None, description="What becomes of the tokens' hidden states: their mean, the default, or the last one."
    )
    user: IgnoredValue | None = Field(None, description="Accepted and ignored.")
