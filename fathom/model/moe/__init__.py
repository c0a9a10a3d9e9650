"""Mixture of experts: router, balance, token dropping, dispatch, replay, and the layer that joins them."""

from __future__ import annotations

from fathom.model.moe.context import RoutingContext
from fathom.model.moe.dispatch import ExpertAssignment, LocalDispatcher, TokenDispatcher
from fathom.model.moe.drop import exempt_sequences
from fathom.model.moe.layer import Experts, MoELayer, RoutedExperts
from fathom.model.moe.replay import chosen_experts, routing_agreement_sums
from fathom.model.moe.router import Router, Routing

__all__ = [
    "ExpertAssignment",
    "Experts",
    "LocalDispatcher",
    "MoELayer",
    "RoutedExperts",
    "Router",
    "Routing",
    "RoutingContext",
    "TokenDispatcher",
    "chosen_experts",
    "exempt_sequences",
    "routing_agreement_sums",
]
