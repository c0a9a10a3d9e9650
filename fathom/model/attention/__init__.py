"""Attention: grouped-query (MHA, GQA, MQA, windows) and multi-head latent, behind one call."""

from __future__ import annotations

from fathom.model.attention.context import AttentionContext, LatentForm
from fathom.model.attention.gqa import GQA
from fathom.model.attention.mla import MLA
from fathom.spec import GroupedQueryAttention, ModelSpec

__all__ = ["GQA", "MLA", "AttentionContext", "LatentForm", "make_attention"]


def make_attention(spec: ModelSpec) -> GQA | MLA:
    """Return the attention module that the spec describes."""
    if isinstance(spec.attention, GroupedQueryAttention):
        return GQA(spec, spec.attention)
    return MLA(spec, spec.attention)
