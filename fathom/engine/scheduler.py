"""The scheduler: which requests run in the next step, how many tokens of each, and in which pages.

Requests that decode come first, with a token each; prompts fill what is left of the step's token budget, in chunks;
drafts take what remains. Where pages run out, the request of lowest priority, and among those the latest, is preempted:
its pages are freed, and its prompt and sampled tokens are recomputed later. Its further tokens are the same.
"""

from __future__ import annotations

from array import array
from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import merge

from fathom.engine.pages import PageAllocator
from fathom.engine.state import RequestState
from fathom.spec.engine import EngineSpec


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """One request's share of a step: its next ``tokens`` tokens, and slots for as many drafts after them."""

    state: RequestState
    tokens: int
    num_draft_slots: int = 0

    @property
    def end(self) -> int:
        """Tokens of the request that are computed after the step."""
        return self.state.num_computed_tokens + self.tokens


def _queue_key(state: RequestState) -> tuple[int, int]:
    return state.queue_key


class Scheduler:
    """Running and waiting requests, each in order of priority, then arrival.

    With a ``window``, a request holds only pages inside the sliding window, prefills its prompt in chunks of at most
    the window, and shares no pages. A request that decodes may try ``draft_tokens`` drafts a step.
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
        self._scheduled: dict[int, ScheduledRequest] = {}
        self._scheduled_tokens = 0
        self._decoding: dict[int, ScheduledRequest] = {}  # kept from step to step

    def max_pages(self, tokens: int) -> int:
        """Return the most pages that a request of ``tokens`` tokens ever holds."""
        size = self.spec.page_size
        whole = -(-tokens // size)
        if self.window is None:
            return whole
        chunk = min(self.window, self.spec.step_tokens)
        return min(whole, -(-(self.window + chunk) // size) + 1)

    def add(self, state: RequestState) -> None:
        """Add a request to the waiting queue."""
        insort(self.waiting, state, key=_queue_key)

    def remove(self, state: RequestState) -> None:
        """Remove a request, running or waiting, and free its pages."""
        (self.running if state.running else self.waiting).remove(state)
        state.running = False
        self._decoding.pop(state.id, None)
        self.pages.release(state.pages)
        state.pages = array("i")
        state.num_computed_tokens = state.first_page_token = state.num_hashed_pages = 0
        state.pending_hidden_ND = None

    def schedule(self) -> list[ScheduledRequest]:
        """Choose the next step's work and allocate its pages; never empty while there is a request.

        Each step runs at least one token of the first running request in order: decoding leaves a token of the step to
        prompts, pages are taken from the last request in order, and a waiting request that does not fit stops
        admission only. So running requests end one after another without being preempted by later ones, and the first
        waiting request, behind which none is admitted, fits the empty pool at the latest.
        """
        self._scheduled, self._scheduled_tokens = {}, 0
        for state in tuple(self.running):
            if state.running and len(state.tokens) - state.num_computed_tokens == 1:
                self._run(state, 1)
        if self.waiting or len(self._scheduled) < len(self.running):
            self._schedule_prompts()
        if self.draft_tokens:
            self._schedule_drafts()
        return list(self._scheduled.values())

    def free_draft_pages(self, state: RequestState) -> None:
        """Free the pages that hold only rejected drafts."""
        kept = self._pages_for(state, len(state.tokens))
        self.pages.release(state.pages[kept:])
        del state.pages[kept:]

    def _schedule_prompts(self) -> None:
        reading = [state for state in self.running if state.remaining > 1]
        free_places = len(self.running) < self.spec.max_batch
        if self.waiting and (free_places or self.waiting[0].queue_key[0] < self.running[-1].queue_key[0]):
            queued = self.waiting[: self.spec.max_batch]
        else:
            queued = []
        pending = self._pending(reading) if queued else {}
        admitting = True
        for state in list(merge(reading, queued, key=_queue_key)):
            left = self.spec.step_tokens - self._scheduled_tokens
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

    def _schedule_drafts(self) -> None:
        """Reserve slots for drafts of decoding requests in what is left of the step and of the pages.

        Pages of rejected drafts are freed after the step.
        """
        size, most = self.spec.page_size, min(self.draft_tokens, (self.window or self.spec.step_tokens) - 1)
        left = self.spec.step_tokens - self._scheduled_tokens
        for work in tuple(self._scheduled.values()):
            state = work.state
            if state.remaining > 1 or not state.drawn:
                continue
            held = state.first_page_token + (len(state.pages) + self.pages.available) * size - len(state.tokens)
            slots = min(most, left, held, state.request.params.max_tokens - len(state.drawn) - 1)
            if slots < 1:
                continue
            missing = self._pages_for(state, len(state.tokens) + slots) - len(state.pages)
            if missing > 0:
                state.pages.extend(self.pages.allocate(missing, state.pages[-1]))
            self._scheduled[state.id] = replace(work, num_draft_slots=slots)
            left -= slots

    def _pages_for(self, state: RequestState, tokens: int) -> int:
        return -(-(tokens - state.first_page_token) // self.spec.page_size)

    def _run(self, state: RequestState, tokens: int) -> None:
        if not self._allocate_pages(state, tokens):
            return
        if tokens > 1:
            self._scheduled[state.id] = ScheduledRequest(state, tokens)
        else:
            work = self._decoding.get(state.id) or ScheduledRequest(state, 1)
            self._scheduled[state.id] = self._decoding[state.id] = work
        self._scheduled_tokens += tokens

    def _allocate_pages(self, state: RequestState, tokens: int) -> bool:
        """Allocate the pages of a request's next tokens, preempting the last request in order where none is free."""
        size = self.spec.page_size
        if self.window is not None:
            outside = max(state.num_computed_tokens - self.window + 1 - state.first_page_token, 0) // size
            self.pages.release(state.pages[:outside])
            del state.pages[:outside]
            state.first_page_token += outside * size
        missing = -(-(state.num_computed_tokens + tokens - state.first_page_token) // size) - len(state.pages)
        if missing <= 0:
            return True
        while missing > self.pages.available:
            last = self.running[-1]
            self._preempt(last)
            if last is state:
                return False
        state.pages.extend(self.pages.allocate(missing, state.pages[-1] if state.pages else None))
        return True

    def _preempt(self, state: RequestState) -> None:
        self.preemptions += 1
        work = self._scheduled.pop(state.id, None)
        self._scheduled_tokens -= 0 if work is None else work.tokens
        self.remove(state)
        self.add(state)

    def _admit(self, state: RequestState) -> bool:
        """Start a request if its pages are free, or can be freed by preempting requests of lower priority."""
        lower = [other for other in self.running if other.request.priority < state.request.priority]
        if not self._fits(state) and not self._fits_after_preempting(lower, state):
            return False
        while not self._fits(state):
            self._preempt(lower.pop())
        found = self._cached_prefix(state)
        self.pages.acquire(found)
        state.pages = array("i", found)
        state.num_hashed_pages = len(found)
        state.num_computed_tokens = len(found) * self.spec.page_size
        if state.cached_tokens is None:
            state.cached_tokens = state.num_computed_tokens
            self.prompt_tokens += len(state.request.prompt)
            self.cached_tokens += state.num_computed_tokens
        self.waiting.remove(state)
        state.running = True
        insort(self.running, state, key=_queue_key)
        return True

    def _fits(self, state: RequestState) -> bool:
        if len(self.running) >= self.spec.max_batch:
            return False
        found = self._cached_prefix(state)
        wanted = self.max_pages(len(state.tokens)) - len(found) + self.pages.count_unreferenced(found)
        return wanted + self._reserved_pages(self.running) <= self.pages.available

    def _fits_after_preempting(self, lower: Sequence[RequestState], state: RequestState) -> bool:
        if not lower:
            return False
        others = [other for other in self.running if other not in lower]
        freed = self.pages.available + self.pages.freeable_by(other.pages for other in lower)
        wanted = self.max_pages(len(state.tokens)) + self._reserved_pages(others)
        return len(others) < self.spec.max_batch and wanted <= freed

    def _reserved_pages(self, running: Iterable[RequestState]) -> int:
        """Count the pages that running requests still need for their prompts, and one each for sampled tokens."""
        return sum(1 + max(self.max_pages(len(state.tokens)) - len(state.pages), 0) for state in running)

    def _block_hashes(self, state: RequestState) -> Sequence[bytes]:
        """Return the block hashes of the pages that a request could share: all but the one of its last token."""
        if state.block_hashes is None:
            return ()
        whole = (len(state.tokens) - 1) // self.spec.page_size
        return state.block_hashes.hashes(state.tokens, whole)[:whole]

    def _cached_prefix(self, state: RequestState) -> list[int]:
        return self.pages.match_prefix(self._block_hashes(state))

    def _pending(self, reading: Iterable[RequestState]) -> dict[bytes, int]:
        """Return the block hashes of pages being computed, with the highest priority among their requests."""
        pending: dict[bytes, int] = {}
        for state in reading:
            self._add_pending(pending, state)
        return pending

    def _add_pending(self, pending: dict[bytes, int], state: RequestState) -> None:
        for block_hash in self._block_hashes(state)[state.num_hashed_pages :]:
            pending[block_hash] = max(pending.get(block_hash, state.request.priority), state.request.priority)

    def _waits_for_prefix(self, state: RequestState, pending: dict[bytes, int]) -> bool:
        """Whether another request, of no lower priority, is computing the next page this one could share."""
        hashes = self._block_hashes(state)
        found = len(self.pages.match_prefix(hashes))
        return found < len(hashes) and pending.get(hashes[found], state.request.priority - 1) >= state.request.priority
