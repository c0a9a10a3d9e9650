"""Memory of a served model: its weights, and the pages of its key-value cache."""

from __future__ import annotations

from dataclasses import dataclass

from fathom.plan.cache import cache_bytes_per_token
from fathom.plan.count import count_parameters
from fathom.spec import CacheFormat, ModelSpec, check

_DEFAULT_MAX_LEN_REQUESTS = 4
_TOKENS_OF_A_SHORT_REQUEST = 256
CACHE_SHARE = 4
"""A page pool of default size takes at most the memory divided by this."""
_MIN_CACHE_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class ServingMemory:
    """Bytes of a served model; ``cache`` is its pool of ``cache_tokens`` tokens."""

    weights: int
    cache: int
    cache_tokens: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache


def default_cache_tokens(context: int, max_batch: int) -> int:
    """Return the tokens a page pool holds where memory allows: four contexts, and ``max_batch`` short requests."""
    return max(_DEFAULT_MAX_LEN_REQUESTS * context, max_batch * _TOKENS_OF_A_SHORT_REQUEST)


def serving_memory(
    spec: ModelSpec,
    memory: int,
    *,
    bits: int,
    cache_format: CacheFormat = "plain",
    cache_tokens: int | None = None,
    page_size: int = 32,
    max_batch: int = 32,
    mtp_cache: bool = False,
    weight_bytes: int | None = None,
) -> ServingMemory:
    """Return what a model takes while it is loaded and served within ``memory`` bytes; ``total`` may exceed them.

    ``bits`` are those of a weight, and of a cached number where ``cache_format`` is plain. Without ``cache_tokens`` the
    pool holds ``default_cache_tokens``, but takes no more than a quarter of ``memory`` and no more than the weights
    leave, down to 2,048 tokens or one context. ``mtp_cache``: the MTP module caches too. ``weight_bytes`` are those of
    quantized weights, else they are counted.
    """
    check.positive("memory", memory)
    count = count_parameters(spec)
    weights = (count.total + count.mtp + count.vision) * bits // 8 if weight_bytes is None else weight_bytes
    per_token = cache_bytes_per_token(spec, bits=bits, cache_format=cache_format)
    if mtp_cache:
        per_token *= (spec.num_hidden_layers + 1) / spec.num_hidden_layers
    context = spec.max_position_embeddings
    if cache_tokens is None:
        affordable = int(min(memory // CACHE_SHARE, max(memory - weights, 0)) / per_token)
        cache_tokens = max(min(default_cache_tokens(context, max_batch), affordable), min(_MIN_CACHE_TOKENS, context))
        pages = max(cache_tokens // page_size, 1)
    else:
        pages = -(-cache_tokens // page_size)
    return ServingMemory(weights, round(pages * page_size * per_token), pages * page_size)
