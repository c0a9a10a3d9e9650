"""Fields that chat and text completion requests share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

MAX_TOKENS = 1 << 24
_INT64 = 1 << 63

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


class RequestModel(BaseModel):
    """Strict: values are not coerced, and unknown fields are errors."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class StreamOptions(RequestModel):
    """Options of a streamed response."""

    include_usage: bool | None = Field(None, description="Send a last chunk with the usage.")
    include_obfuscation: bool | None = Field(None, description="Accepted and ignored.")


class SamplingRequest(RequestModel):
    """Sampling parameters, and fields that are accepted and ignored."""

    model: str | None = Field(None, description="A name that GET /v1/models lists; the served model if left out.")
    temperature: float | None = Field(None, ge=0, le=100, description="Default 1; 0 is greedy decoding.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(
        None, ge=-1, le=MAX_TOKENS, description="Sample from the k most likely tokens; 0 or -1: from all."
    )
    min_p: float | None = Field(None, ge=0, le=1, description="Minimum probability relative to the most likely token.")
    n: int | None = Field(None, ge=1, description="Choices per prompt.")
    max_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    min_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS, description="No end of sequence before this many tokens.")
    stop: str | list[str] | None = Field(None, description="Stop strings; they are not part of the output.")
    stop_token_ids: list[TokenId] | None = Field(None, max_length=256)
    ignore_eos: bool | None = Field(None, description="Continue after end-of-sequence tokens.")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, description="Token ids (as strings) with a bias added to their logits."
    )
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64, description="The same seed gives the same output.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    guided_regex: str | None = Field(None, description="Regular expression that the whole output must match.")
    priority: int | None = Field(None, ge=-1000, le=1000, description="Higher runs first.")
    cache_salt: str | None = Field(
        None, max_length=256, description="Cached prefixes are shared only between requests with the same salt."
    )
    user: Any = Field(None, description="Accepted and ignored.")
    metadata: Any = Field(None, description="Accepted and ignored.")
    service_tier: Any = Field(None, description="Accepted and ignored.")
    safety_identifier: Any = Field(None, description="Accepted and ignored.")
    prompt_cache_key: Any = Field(None, description="Accepted and ignored.")
    prompt_cache_retention: Any = Field(None, description="Accepted and ignored.")

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    @property
    def choices(self) -> int:
        """Choices per prompt."""
        return 1 if self.n is None else self.n

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)
