"""Plans: parameters, cache bytes, FLOPs and memory by arithmetic. No torch."""

from __future__ import annotations

from fathom.plan.cache import cache_bytes, cache_bytes_per_token, cache_numbers_per_token, compare_caches
from fathom.plan.cache_rows import cache_bits_per_number
from fathom.plan.count import ParameterCount, count_parameters, short_count
from fathom.plan.flops import decoding_flops_per_token, forward_flops_per_token, training_flops_per_token
from fathom.plan.memory import TrainingMemory, training_memory
from fathom.plan.serving import ServingMemory, default_cache_tokens, serving_memory

__all__ = [
    "ParameterCount",
    "ServingMemory",
    "TrainingMemory",
    "cache_bits_per_number",
    "cache_bytes",
    "cache_bytes_per_token",
    "cache_numbers_per_token",
    "compare_caches",
    "count_parameters",
    "decoding_flops_per_token",
    "default_cache_tokens",
    "forward_flops_per_token",
    "serving_memory",
    "short_count",
    "training_flops_per_token",
    "training_memory",
]
