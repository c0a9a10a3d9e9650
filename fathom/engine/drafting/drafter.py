"""The interface of drafters, which propose tokens ahead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from fathom.engine.scheduler import ScheduledRequest
from fathom.engine.state import RequestState


class Drafter(Protocol):
    """Proposes the next tokens. Answers are the same whatever it proposes; accepted drafts save steps."""

    observes: bool
    """Whether ``observe`` does anything."""

    def propose(self, scheduled: Sequence[ScheduledRequest]) -> Mapping[int, Sequence[int]]:
        """Return drafts by request id, at most as many as a work has slots for, before the pass that verifies them."""
        ...

    def observe(self, states: Sequence[RequestState], hidden_ND: Sequence[Tensor]) -> None:
        """Take the hidden states of each request's tokens of a pass, those of rejected drafts left out.

        Its ``computed`` does not count them yet, and its ``tokens`` do not have those drawn in this pass.
        """
        ...


class NoDrafter:
    """Proposes nothing."""

    observes = False

    def propose(self, scheduled: Sequence[ScheduledRequest]) -> Mapping[int, Sequence[int]]:
        """Return nothing."""
        return {}

    def observe(self, states: Sequence[RequestState], hidden_ND: Sequence[Tensor]) -> None:
        """Do nothing."""
