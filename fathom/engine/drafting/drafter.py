"""The interface of what proposes tokens.

N tokens of one request in a step, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from fathom.engine.scheduler import ScheduledRequest
from fathom.engine.state import RequestState


class Drafter(Protocol):
    """Proposes what may come next. Whatever it proposes, answers stay the same; good drafts make them come sooner."""

    def propose(self, works: Sequence[ScheduledRequest]) -> Mapping[int, Sequence[int]]:
        """Return drafts by request id, at most as many as a work has room for, before the pass that tries them."""
        ...

    def observe(self, states: Sequence[RequestState], hidden_ND: Sequence[Tensor]) -> None:
        """Hear of a pass: the hidden states of each request's next tokens, those of refused drafts left out.

        Its ``computed`` does not count them yet, and its ``tokens`` do not have those drawn in this pass.
        """
        ...


class NoDrafter:
    """Proposes nothing."""

    def propose(self, works: Sequence[ScheduledRequest]) -> Mapping[int, Sequence[int]]:
        """Return nothing."""
        return {}

    def observe(self, states: Sequence[RequestState], hidden_ND: Sequence[Tensor]) -> None:
        """Do nothing."""
