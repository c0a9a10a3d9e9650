"""What chat and text requests share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

MAX_TOKENS = 1 << 24
_INT64 = 1 << 63

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


class RequestModel(BaseModel):
    """Read strictly: no value is turned into another type, and no field is overlooked."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class StreamOptions(RequestModel):
    """How an answer is streamed."""

    include_usage: bool | None = Field(None, description="Send a last chunk with the token counts.")
    include_obfuscation: bool | None = Field(None, description="Accepted and ignored.")


class SamplingRequest(RequestModel):
    """How tokens are drawn, and what is accepted and ignored."""

    model: str | None = Field(None, description="A name that GET /v1/models lists; the served model if left out.")
    temperature: float | None = Field(None, ge=0, le=100, description="1 if left out; 0 takes the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MAX_TOKENS, description="Draw from the k likeliest; 0 or -1 from all.")
    min_p: float | None = Field(None, ge=0, le=1, description="Drop tokens below this share of the likeliest one.")
    n: int | None = Field(None, ge=1, description="Answers to each prompt.")
    max_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    min_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS, description="No answer ends before as many tokens.")
    stop: str | list[str] | None = Field(None, description="Texts that end the answer and are not part of it.")
    stop_token_ids: list[TokenId] | None = Field(None, max_length=256)
    ignore_eos: bool | None = Field(None, description="Go on after the model's end-of-sequence tokens.")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, description="Token ids, as text, with what is added to their logits."
    )
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64, description="The same seed draws the same answer.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    guided_regex: str | None = Field(None, description="Constrain the answer to match this whole pattern.")
    priority: int | None = Field(None, ge=-1000, le=1000, description="Higher goes first.")
    cache_salt: str | None = Field(
        None, max_length=256, description="Cached prompts are shared between requests of equal salts only."
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
        """Answers to each prompt."""
        return 1 if self.n is None else self.n

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)
