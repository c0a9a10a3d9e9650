"""Attention: grouped-query (MHA, GQA, MQA, windows) and multi-head latent, behind one call."""

from __future__ import annotations

from fathom.model.attention.context import AttentionContext, LatentForm
from fathom.model.attention.grouped import GroupedQuery
from fathom.model.attention.latent import Latent
from fathom.spec import GroupedQueryAttention, ModelSpec

__all__ = ["AttentionContext", "GroupedQuery", "Latent", "LatentForm", "make_attention"]


def make_attention(spec: ModelSpec) -> GroupedQuery | Latent:
    """Return the attention module that the spec describes."""
    if isinstance(spec.attention, GroupedQueryAttention):
        return GroupedQuery(spec, spec.attention)
    return Latent(spec, spec.attention)
