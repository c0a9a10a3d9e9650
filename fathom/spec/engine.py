"""Configuration of an engine: its page pool, the size of a step, the formats of weights and cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fathom.errors import SpecError
from fathom.spec import check

CacheFormat = Literal["plain", "int8", "int6"]
CACHE_FORMATS: tuple[CacheFormat, ...] = ("plain", "int8", "int6")
WeightFormat = Literal["plain", "int8", "int4"]
WEIGHT_FORMATS: tuple[WeightFormat, ...] = ("plain", "int8", "int4")
PackedWeights = Literal["auto", "int8", "int4"]
WeightChoice = Literal["auto", "plain", "int8", "int4"]
WEIGHT_CHOICES: tuple[WeightChoice, ...] = ("auto", "plain", "int8", "int4")
"""How a model's weights are kept: auto is as a file quantized them where the native library runs, and else plain."""
ComputeDtype = Literal["auto", "bfloat16"]
COMPUTE_DTYPES: tuple[ComputeDtype, ...] = ("auto", "bfloat16")
Drafting = Literal["none", "auto", "mtp", "ngram"]
DRAFTING: tuple[Drafting, ...] = ("none", "auto", "mtp", "ngram")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """Configuration of one engine.

    The pool holds ``cache_tokens`` tokens in pages of ``page_size``; None takes four contexts, and at least one
    ``max_batch`` of short requests, but no more than a quarter of the memory that is available. A step runs at most
    ``max_batch`` sequences and ``step_tokens`` new tokens: decoding comes first, prompts fill what is left, in chunks.
    ``prefix_cache`` keeps the pages of finished requests until the pool needs them. ``cache_format`` is how numbers
    lie in the pages: as the model computes them, or in 8 or about 6 bits. ``drafting`` proposes tokens ahead,
    ``draft_tokens`` at a time: by the MTP module, by repetition in the text itself, or auto: MTP where the model has
    one, else none. ``record_routing`` keeps which experts each token went to, and gives that with the answer; a dense
    model has nothing to give. ``compute_dtype`` auto computes in the weights' dtype; bfloat16 runs float32 weights
    under autocast with a cache of that dtype, as a trainer of that ``precision`` does: weights that are trained may
    not be rounded, and rollouts must compute as the update does.
    """

    page_size: int = 32
    cache_tokens: int | None = None
    max_batch: int = 32
    step_tokens: int = 512
    prefix_cache: bool = True
    cache_format: CacheFormat = "plain"
    drafting: Drafting = "none"
    draft_tokens: int = 1
    record_routing: bool = False
    compute_dtype: ComputeDtype = "auto"

    def __post_init__(self) -> None:
        for name in ("page_size", "max_batch", "step_tokens", "draft_tokens"):
            check.positive(name, getattr(self, name))
        if self.step_tokens < self.max_batch:
            raise SpecError(
                "step_tokens",
                f"{self.step_tokens} is less than max_batch {self.max_batch}, which decodes one token each",
                "raise step_tokens or lower max_batch",
            )
        if self.cache_tokens is not None:
            check.positive("cache_tokens", self.cache_tokens)
        check.one_of("cache_format", self.cache_format, CACHE_FORMATS)
        check.one_of("drafting", self.drafting, DRAFTING)
        check.one_of("compute_dtype", self.compute_dtype, COMPUTE_DTYPES)
