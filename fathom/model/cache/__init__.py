"""KV caches: static ones, the reference implementation, and paged ones over a pool shared by requests."""

from __future__ import annotations

from fathom.model.cache.attention_metadata import (
    AttentionGroup,
    AttentionMetadata,
    KeyValueCache,
    LayerCache,
    causal_metadata,
    packed_metadata,
)
from fathom.model.cache.decoding import DecodingStep, decoding_rows
from fathom.model.cache.paged import PagedStep, SequenceChunk
from fathom.model.cache.pool import PagePool
from fathom.model.cache.static import FullLayerCache, SlidingWindowLayerCache, StaticCache

__all__ = [
    "AttentionGroup",
    "AttentionMetadata",
    "DecodingStep",
    "FullLayerCache",
    "KeyValueCache",
    "LayerCache",
    "PagePool",
    "PagedStep",
    "SequenceChunk",
    "SlidingWindowLayerCache",
    "StaticCache",
    "causal_metadata",
    "decoding_rows",
    "packed_metadata",
]
