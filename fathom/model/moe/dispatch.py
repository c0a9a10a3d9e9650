"""How tokens reach the experts of a layer: the seam between a router's choice and the experts' grouped products.

Z tokens that the experts of this process work on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class ExpertAssignment:
    """Which experts each token meets: ``indices_NK``, ``weights_NK`` (float32), and ``kept_NK`` (None keeps all pairs).

    Pairs of a token and an expert that are not kept contribute nothing and cost nothing.
    """

    indices_NK: Tensor
    weights_NK: Tensor
    kept_NK: Tensor | None = None


class TokenDispatcher(Protocol):
    """Brings tokens to the experts that a process holds, and their outputs back.

    ``Experts`` calls ``dispatch``, the grouped products, ``combine``; no layer knows which process it is in. Sorting by
    expert is part of the grouped products: it reads rows where they are and copies none, wherever they come from.
    """

    def dispatch(self, x_ND: Tensor, assignment: ExpertAssignment) -> tuple[Tensor, ExpertAssignment, Any]:
        """Return (Z, D) rows for the experts held here, their assignment, and what ``combine`` needs.

        The assignment that is returned counts the experts held here from 0.
        """
        ...

    def combine(self, y_ZD: Tensor, state: Any) -> Tensor:
        """Return (N, D): for every token the sum of what the experts made of it, in the order of ``dispatch``."""
        ...


class LocalDispatcher:
    """Every expert is held here: the identity."""

    def dispatch(self, x_ND: Tensor, assignment: ExpertAssignment) -> tuple[Tensor, ExpertAssignment, None]:
        """Return what was given."""
        return x_ND, assignment, None

    def combine(self, y_ZD: Tensor, state: None) -> Tensor:
        """Return what was given."""
        return y_ZD
