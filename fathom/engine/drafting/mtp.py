"""Drafting by the model's own MTP module (V3 §2.2 and §5.4.3).

X tokens that hidden states were kept of.

The module pairs a token with the hidden state before it, and attends to earlier pairs. They lie in a layer of pages of
its own, the pair of token i in slot i: it depends on tokens 0 to i alone, as everything else in a page does, so pages
can be shared. Slot 0 is empty. A pair can be computed once its token is known, which for the last token is only after
the pass that made its hidden state: what the module has yet to read waits in the request's state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fathom.engine.forward_pass import ForwardPass
from fathom.engine.scheduler import ScheduledRequest
from fathom.engine.state import RequestState
from fathom.model.cache import PagePool, SequenceChunk


class MtpDrafter:
    """Proposes the likeliest token after the next by the first MTP module.

    Further drafts take the module's own output for the hidden state it was not trained on: V3's module predicts one
    token, and each further one is accepted less often. ``pool`` has one layer after the model's own.
    """

    observes = True

    def __init__(
        self, forward: ForwardPass, pool: PagePool, *, draft_tokens: int, unused_ids_N: Tensor | None = None
    ) -> None:
        self._forward, model = forward, forward.model
        self._unused_ids_N = unused_ids_N
        self._pool = pool
        self._most_unread = draft_tokens + 1  # what a step can leave behind that tried all its drafts
        # the hidden state of each page's last token, with which the first token after a shared page is paired
        self._last_XD = torch.zeros(pool.num_pages, model.spec.hidden_size, dtype=model.dtype, device=model.device)

    def propose(self, scheduled: Sequence[ScheduledRequest]) -> Mapping[int, Sequence[int]]:
        """Return drafts by request id, after reading what the last step left."""
        for work in scheduled:
            work.state.pending_hidden_ND = self._previous_hidden(work.state)
        chosen = [work for work in scheduled if work.num_draft_slots and work.state.pending_hidden_ND is not None]
        chosen.sort(key=lambda work: (_unread(work.state), work.state.num_computed_tokens))
        if not chosen:
            return {}
        ends = [work.state.num_computed_tokens + 1 for work in chosen]
        hidden_BD = self._process_pending(
            [work.state for work in chosen], ends, [_unread(work.state) for work in chosen]
        )
        drafts: dict[int, list[int]] = {work.state.id: [] for work in chosen}
        for depth in range(1, max(work.num_draft_slots for work in chosen) + 1):
            logits_BV = self._forward.logits(hidden_BD)
            if self._unused_ids_N is not None:
                logits_BV = logits_BV.index_fill(-1, self._unused_ids_N, -torch.inf)
            tokens = logits_BV.argmax(-1).tolist()
            for work, token in zip(chosen, tokens, strict=True):
                drafts[work.state.id].append(token)
            further = [index for index, work in enumerate(chosen) if work.num_draft_slots > depth]
            if not further:
                break
            chosen = [chosen[index] for index in further]
            slices = [SequenceChunk(work.state.pages, work.state.num_computed_tokens + depth, 1) for work in chosen]
            hidden_BD = self._forward.forward_mtp([tokens[index] for index in further], slices, hidden_BD[further])
        return drafts

    def observe(self, states: Sequence[RequestState], hidden_ND: Sequence[Tensor]) -> None:
        """Keep what the module has yet to read, or read it if it is a prompt's."""
        self._keep_page_ends(states, hidden_ND)
        behind, ends = [], []
        for state, new_ND in zip(states, hidden_ND, strict=True):
            held_ND = self._previous_hidden(state)
            state.pending_hidden_ND = new_ND.clone() if held_ND is None else torch.cat((held_ND, new_ND))
            if len(state.pending_hidden_ND) > self._most_unread:
                behind.append(state)
                ends.append(state.num_computed_tokens + len(new_ND))
        if behind:
            self._process_pending(behind, ends, [_unread(state) - 1 for state in behind])

    def _previous_hidden(self, state: RequestState) -> Tensor | None:
        """The hidden states before the step's first: none at the beginning, a page's last one after a shared page."""
        if state.pending_hidden_ND is not None or state.num_computed_tokens == 0:
            return state.pending_hidden_ND
        page = state.pages[state.num_computed_tokens // self._pool.page_size - 1]
        return self._last_XD[page : page + 1]

    def _process_pending(self, states: Sequence[RequestState], ends: Sequence[int], counts: Sequence[int]) -> Tensor:
        """Let the module read the first ``counts`` unread hidden states of each request, up to slot ``ends``.

        Returns the module's last hidden state of each, (B, D).
        """
        slices, tokens, previous_ND = [], [], []
        for state, end, count in zip(states, ends, counts, strict=True):
            assert state.pending_hidden_ND is not None
            slices.append(SequenceChunk(state.pages, end - count, count))
            tokens += state.tokens[end - count : end]
            previous_ND.append(state.pending_hidden_ND[:count])
            state.pending_hidden_ND = state.pending_hidden_ND[count:].clone()
        hidden_ND = self._forward.forward_mtp(tokens, slices, torch.cat(previous_ND))
        last = torch.tensor(counts, device=hidden_ND.device).cumsum(0) - 1
        return hidden_ND[last]

    def _keep_page_ends(self, states: Sequence[RequestState], hidden_ND: Sequence[Tensor]) -> None:
        size, pages, rows = self._pool.page_size, [], []
        for state, new_ND in zip(states, hidden_ND, strict=True):
            for index in range(size - 1 - state.num_computed_tokens % size, len(new_ND), size):
                pages.append(state.pages[(state.num_computed_tokens + index) // size])
                rows.append(new_ND[index])
        if pages:
            self._last_XD[torch.tensor(pages, device=self._pool.device)] = torch.stack(rows).to(self._last_XD.dtype)


def _unread(state: RequestState) -> int:
    return 0 if state.pending_hidden_ND is None else len(state.pending_hidden_ND)
