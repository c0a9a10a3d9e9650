"""Drafting by repetition in the text itself: code, tables, quotations and answers that repeat their question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fathom.engine.drafting.drafter import NoDrafter
from fathom.engine.drafting.ngram_index import NgramIndex
from fathom.engine.scheduler import ScheduledRequest


class NgramDrafter(NoDrafter):
    """Proposes what followed the last tokens when they last occurred in the same request."""

    def propose(self, scheduled: Sequence[ScheduledRequest]) -> Mapping[int, Sequence[int]]:
        """Return drafts by request id."""
        drafts = {}
        for work in scheduled:
            if work.num_draft_slots:
                state = work.state
                if state.ngram_index is None:
                    state.ngram_index = NgramIndex(state.tokens)
                drafts[state.id] = state.ngram_index.propose(work.num_draft_slots)
        return drafts
