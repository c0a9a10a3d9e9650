"""Which requests run in the next step, how many tokens of each, and in which pages.

Requests that decode come first, with a token each; prompts fill what is left of the step, in chunks; drafts take what
nobody else needs. Where pages run out, the request of lowest priority, and among those the latest, gives its own back
and waits: what it drew is read again later like a prompt, and its draws go on as if nothing had happened.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import merge

from fathom.engine.pages import PageAllocator
from fathom.engine.state import RequestState
from fathom.spec.engine import EngineSpec


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """One request's share of a step: its next ``tokens`` tokens, and ``room`` for as many drafts behind them."""

    state: RequestState
    tokens: int
    room: int = 0

    @property
    def end(self) -> int:
        """Tokens of the request that are computed after the step."""
        return self.state.computed + self.tokens


def _rank(state: RequestState) -> tuple[int, int]:
    return state.rank


class Scheduler:
    """Requests that run and requests that wait, each in order of priority, then arrival.

    With a ``window``, a request holds only pages that a query can still see, reads its prompt in chunks of at most the
    window, and shares no pages. A request that decodes may try ``draft_tokens`` drafts a step.
    """

    def __init__(
        self, spec: EngineSpec, pages: PageAllocator, *, window: int | None = None, draft_tokens: int = 0
    ) -> None:
        self.spec = spec
        self.pages = pages
        self.window = window
        self.draft_tokens = draft_tokens
        self.running: list[RequestState] = []
        self.waiting: list[RequestState] = []
        self.preemptions = self.prompt_tokens = self.cached_tokens = 0
        self._planned: dict[int, ScheduledRequest] = {}

    def max_pages(self, tokens: int) -> int:
        """Return the most pages that a request of ``tokens`` tokens ever holds."""
        size = self.spec.page_size
        whole = -(-tokens // size)
        if self.window is None:
            return whole
        chunk = min(self.window, self.spec.step_tokens)
        return min(whole, -(-(self.window + chunk) // size) + 1)

    def add(self, state: RequestState) -> None:
        """Let a request wait for its turn."""
        insort(self.waiting, state, key=_rank)

    def remove(self, state: RequestState) -> None:
        """Forget a request and take back its pages, whatever it is doing."""
        (self.running if state.running else self.waiting).remove(state)
        state.running = False
        self.pages.release(state.pages)
        state.pages = []
        state.computed = state.first = state.named = 0
        state.pending_hidden_ND = None

    def plan(self) -> list[ScheduledRequest]:
        """Choose the next step's work and give it its pages; never empty while there is a request.

        Each step runs at least one token of the first running request in order: decoding leaves a token of the step to
        prompts, pages are taken from the last request in order, and a waiting request that does not fit stops
        admission only. So running requests end one after another without being preempted by later ones, and the first
        waiting request, behind which none is admitted, fits the empty pool at the latest.
        """
        self._planned = {}
        for state in tuple(self.running):
            if state.running and state.remaining == 1:
                self._run(state, 1)
        self._plan_prompts()
        if self.draft_tokens:
            self._plan_drafts()
        return list(self._planned.values())

    def free_draft_pages(self, state: RequestState) -> None:
        """Take back the pages that only refused drafts were in."""
        kept = self._pages_for(state, len(state.tokens))
        self.pages.release(state.pages[kept:])
        del state.pages[kept:]

    def _plan_prompts(self) -> None:
        reading = [state for state in self.running if state.remaining > 1]
        free_places = len(self.running) < self.spec.max_batch
        if self.waiting and (free_places or self.waiting[0].rank[0] < self.running[-1].rank[0]):
            queued = self.waiting[: self.spec.max_batch]
        else:
            queued = []
        pending = self._pending(reading) if queued else {}
        admitting = True
        for state in list(merge(reading, queued, key=_rank)):
            left = self.spec.step_tokens - sum(work.tokens for work in self._planned.values())
            if left < 1:
                return
            if not state.running:
                if not admitting or self._waits_for_prefix(state, pending):
                    continue
                admitting = self._admit(state)
                if not admitting:
                    continue
                self._add_pending(pending, state)
            self._run(state, min(left, state.remaining, self.window or left))

    def _plan_drafts(self) -> None:
        """Give requests that decode room for drafts in what is left of the step and of the pages.

        What refused drafts lay in comes back after the step.
        """
        size, most = self.spec.page_size, min(self.draft_tokens, (self.window or self.spec.step_tokens) - 1)
        left = self.spec.step_tokens - sum(work.tokens for work in self._planned.values())
        for work in tuple(self._planned.values()):
            state = work.state
            if state.remaining > 1 or not state.drawn:
                continue
            held = state.first + (len(state.pages) + self.pages.available) * size - len(state.tokens)
            room = min(most, left, held, state.request.params.max_tokens - len(state.drawn) - 1)
            if room < 1:
                continue
            missing = self._pages_for(state, len(state.tokens) + room) - len(state.pages)
            if missing > 0:
                state.pages += self.pages.take(missing, state.pages[-1])
            self._planned[state.id] = replace(work, room=room)
            left -= room

    def _pages_for(self, state: RequestState, tokens: int) -> int:
        return -(-(tokens - state.first) // self.spec.page_size)

    def _run(self, state: RequestState, tokens: int) -> None:
        if self._grow(state, tokens):
            self._planned[state.id] = ScheduledRequest(state, tokens)

    def _grow(self, state: RequestState, tokens: int) -> bool:
        """Give a request the pages for its next tokens, taking them from the last in order if need be."""
        size = self.spec.page_size
        if self.window is not None:
            left_behind = max(state.computed - self.window + 1 - state.first, 0) // size
            self.pages.release(state.pages[:left_behind])
            del state.pages[:left_behind]
            state.first += left_behind * size
        missing = self._pages_for(state, state.computed + tokens) - len(state.pages)
        if missing <= 0:
            return True
        while missing > self.pages.available:
            last = self.running[-1]
            self._preempt(last)
            if last is state:
                return False
        state.pages += self.pages.take(missing, state.pages[-1] if state.pages else None)
        return True

    def _preempt(self, state: RequestState) -> None:
        self.preemptions += 1
        self._planned.pop(state.id, None)
        self.remove(state)
        self.add(state)

    def _admit(self, state: RequestState) -> bool:
        """Let a request run if its pages are there, or can be had from requests of lower priority."""
        lower = [other for other in self.running if other.request.priority < state.request.priority]
        if not self._fits(state) and not self._fits_after_preempting(lower, state):
            return False
        while not self._fits(state):
            self._preempt(lower.pop())
        found = self._found(state)
        self.pages.share(found)
        state.pages = found
        state.named = len(found)
        state.computed = len(found) * self.spec.page_size
        if state.cached_tokens is None:
            state.cached_tokens = state.computed
            self.prompt_tokens += len(state.request.prompt)
            self.cached_tokens += state.computed
        self.waiting.remove(state)
        state.running = True
        insort(self.running, state, key=_rank)
        return True

    def _fits(self, state: RequestState) -> bool:
        if len(self.running) >= self.spec.max_batch:
            return False
        found = self._found(state)
        wanted = self.max_pages(len(state.tokens)) - len(found) + self.pages.idle(found)
        return wanted + self._promised(self.running) <= self.pages.available

    def _fits_after_preempting(self, lower: Sequence[RequestState], state: RequestState) -> bool:
        if not lower:
            return False
        others = [other for other in self.running if other not in lower]
        room = self.pages.available + self.pages.freeable_by(other.pages for other in lower)
        wanted = self.max_pages(len(state.tokens)) + self._promised(others)
        return len(others) < self.spec.max_batch and wanted <= room

    def _promised(self, running: Iterable[RequestState]) -> int:
        """Count the pages that running requests still need for their prompts, and one each for what they draw."""
        return sum(1 + max(self.max_pages(len(state.tokens)) - len(state.pages), 0) for state in running)

    def _names(self, state: RequestState) -> Sequence[bytes]:
        """The names of the pages that a request could share: all but the one of its last token."""
        if state.names is None:
            return ()
        whole = (len(state.tokens) - 1) // self.spec.page_size
        return state.names.hashes(state.tokens, whole)[:whole]

    def _found(self, state: RequestState) -> list[int]:
        return self.pages.find(self._names(state))

    def _pending(self, reading: Iterable[RequestState]) -> dict[bytes, int]:
        """The names of pages being computed, with the highest priority among those that compute them."""
        pending: dict[bytes, int] = {}
        for state in reading:
            self._add_pending(pending, state)
        return pending

    def _add_pending(self, pending: dict[bytes, int], state: RequestState) -> None:
        for name in self._names(state)[state.named :]:
            pending[name] = max(pending.get(name, state.request.priority), state.request.priority)

    def _waits_for_prefix(self, state: RequestState, pending: dict[bytes, int]) -> bool:
        """Whether another request, of no lower priority, is computing the next page this one could share."""
        names = self._names(state)
        found = len(self.pages.find(names))
        return found < len(names) and pending.get(names[found], state.request.priority - 1) >= state.request.priority
