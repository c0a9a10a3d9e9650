"""Specs: frozen dataclasses of models, training stages and recipes. Standard library and `packaging` only."""

from __future__ import annotations

from fathom.spec.attention import Attention, GroupedQueryAttention, LatentAttention
from fathom.spec.engine import CacheFormat, Drafting, EngineSpec, WeightChoice, WeightFormat
from fathom.spec.mapping import from_mapping, read_toml, to_mapping
from fathom.spec.model import FAMILIES, Family, ModelSpec
from fathom.spec.moe import BalanceSpec, Capacity, GroupLimited, MixtureOfExperts, RouterSpec, TopK
from fathom.spec.rope import LinearScaling, Llama3Scaling, RopeScaling, RopeSpec, YarnScaling
from fathom.spec.sampling import Completion, FinishReason, Sampler, SamplingParams, TokenLogprob
from fathom.spec.vision import SamSpec, SiglipSpec, VisionSpec

__all__ = [
    "FAMILIES",
    "Attention",
    "BalanceSpec",
    "CacheFormat",
    "Capacity",
    "Completion",
    "Drafting",
    "EngineSpec",
    "Family",
    "FinishReason",
    "GroupLimited",
    "GroupedQueryAttention",
    "LatentAttention",
    "LinearScaling",
    "Llama3Scaling",
    "MixtureOfExperts",
    "ModelSpec",
    "RopeScaling",
    "RopeSpec",
    "RouterSpec",
    "SamSpec",
    "Sampler",
    "SamplingParams",
    "SiglipSpec",
    "TokenLogprob",
    "TopK",
    "VisionSpec",
    "WeightChoice",
    "WeightFormat",
    "YarnScaling",
    "from_mapping",
    "read_toml",
    "to_mapping",
]
