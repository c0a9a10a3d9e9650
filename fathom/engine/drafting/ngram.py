"""Drafting by repetition in the text itself: code, tables, quotations and answers that repeat their question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fathom.engine.drafting.drafter import NoDrafter
from fathom.engine.drafting.ngram_index import NgramIndex
from fathom.engine.scheduler import ScheduledRequest


class NgramDrafter(NoDrafter):
    """Proposes what followed the last tokens when they last occurred in the same request."""

    def propose(self, works: Sequence[ScheduledRequest]) -> Mapping[int, Sequence[int]]:
        """Return drafts by request id."""
        drafts = {}
        for work in works:
            if work.room:
                state = work.state
                if state.history is None:
                    state.history = NgramIndex(state.tokens)
                drafts[state.id] = state.history.continuation(work.room)
        return drafts
