"""Agreement of the experts chosen in the update with those recorded in the rollout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fathom.model.moe import routing_agreement_sums


@dataclass(frozen=True, slots=True)
class RoutingAgreement:
    """Of so many ``tokens``, the share of (token, layer) with ``equal`` sets of experts, and of ``shared`` experts.

    Both are 1 where nothing was compared: nothing differed.
    """

    tokens: float
    equal: float
    shared: float

    @classmethod
    def from_sums(cls, sums: Mapping[str, float]) -> RoutingAgreement:
        """Compute it from ``Gradients.sums``; no tokens where no routes were recorded."""
        tokens = sums.get("routing_tokens", 0.0)
        if not tokens:
            return cls(0.0, 1.0, 1.0)
        return cls(tokens, sums["routing_equal"] / tokens, sums["routing_shared"] / tokens)


def agreement(recorded_NLK: Tensor, used_NLK: Tensor) -> RoutingAgreement:
    """Compare two records of the same tokens' experts; the order of a token's experts is of no account, -1 is unknown.

    Raises:
        DataError: the records are not of the same shape (N, L, K).
    """
    sums = routing_agreement_sums(recorded_NLK, used_NLK)
    return RoutingAgreement.from_sums({name: float(value) for name, value in sums.items()})
