"""No load stops the scheduler: every step runs something, and every request ends within a bounded number of steps."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.engine.engine import Engine
from fathom.engine.input_processor import InputProcessor
from fathom.engine.pages import PageAllocator
from fathom.engine.request import Request
from fathom.engine.scheduler import ScheduledRequest, Scheduler
from fathom.engine.state import RequestState
from fathom.errors import EngineError
from fathom.spec import EngineSpec, SamplingParams
from tests.engine.reference import finish, ids, tiny

LONGEST = 40


@dataclass(frozen=True)
class Arrival:
    """A request, the step at which it arrives, and the step after which it is cancelled, if it is."""

    request: Request
    at: int
    cancelled_at: int | None


class ModelFree:
    """The engine's bookkeeping around a scheduler, with a forward pass that samples a constant."""

    def __init__(self, spec: EngineSpec, *, window: int | None, draft_tokens: int, accepted: Sequence[int]) -> None:
        model = tiny("gqa").spec
        pages = -(-(spec.cache_tokens or LONGEST) // spec.page_size)
        self.pages = PageAllocator(pages)
        self.scheduler = Scheduler(spec, self.pages, window=window, draft_tokens=draft_tokens)
        self._input_processor = InputProcessor(model, self.scheduler, frozenset())
        self._accepted = accepted
        self.states: dict[int, RequestState] = {}
        self.steps = 0

    def submit(self, request: Request) -> int:
        state = self._input_processor.process(request)
        self.states[state.id] = state
        self.scheduler.add(state)
        return state.id

    def cancel(self, request_id: int) -> None:
        state = self.states.pop(request_id, None)
        if state is not None:
            self.scheduler.remove(state)

    def step(self) -> list[ScheduledRequest]:
        works = self.scheduler.schedule()
        self.steps += 1
        assert sum(work.tokens + work.num_draft_slots for work in works) <= self.scheduler.spec.step_tokens
        assert len(works) <= len(self.scheduler.running) <= self.scheduler.spec.max_batch
        for work in works:
            self._settle(work)
        self.pages.verify([state.pages for state in self.states.values()])
        return works

    def _settle(self, work: ScheduledRequest) -> None:
        state, size, end = work.state, self.scheduler.spec.page_size, work.end
        assert state.first_page_token + len(state.pages) * size >= end + work.num_draft_slots
        state.num_computed_tokens = end
        if end == len(state.tokens):
            kept = min(self._accepted[self.steps % len(self._accepted)], work.num_draft_slots)
            state.num_computed_tokens += kept
            state.tokens += [0] * (kept + 1)
            state.drawn += [0] * (kept + 1)
        full = state.num_cacheable_tokens // size
        if state.block_hashes is not None and full > state.num_hashed_pages:
            hashes = state.block_hashes.hashes(state.tokens, full)
            for index in range(state.num_hashed_pages, full):
                state.pages[index] = self.pages.register_hash(state.pages[index], hashes[index])
            state.num_hashed_pages = full
        if len(state.drawn) == state.request.params.max_tokens:
            self.cancel(state.id)
        elif work.num_draft_slots:
            self.scheduler.free_draft_pages(state)


def random_load(draw: random.Random) -> list[Arrival]:
    """Draw requests of which many share a prefix of one of two texts."""
    priorities, starts = draw.choice([[0], [0], [0, 1, 2]]), draw.choice([[0], [0, 1, 2, 5, 15]])
    cancellations = draw.choice([[None], [None, None, 5, 20]])
    load = []
    for number in range(draw.randint(1, 6)):
        length = draw.choice([draw.randint(1, LONGEST - 1), draw.randint(10, 30)])
        text, shared = draw.choice([0, 0, 1]), draw.choice([0, length, draw.randint(0, length)])
        prompt = tuple(text if index < shared else 2 + number for index in range(length))
        max_tokens = min(draw.choice([1, 1, 2, draw.randint(1, LONGEST)]), LONGEST - length)
        request = Request(prompt=prompt, params=SamplingParams(max_tokens=max_tokens), priority=draw.choice(priorities))
        load.append(Arrival(request, draw.choice(starts), draw.choice(cancellations)))
    return load


def run(made: ModelFree, load: Sequence[Arrival]) -> None:
    """Run a load to its end; fails on a step that runs nothing while there is a request, and on too many steps."""
    tokens = [len(arrival.request.prompt) + arrival.request.params.max_tokens for arrival in load]
    most = len(load) * sum(tokens) + max(arrival.at for arrival in load)
    ids_of: dict[int, int] = {}
    now = 0
    while made.states or any(arrival.at >= now for arrival in load):
        for index, arrival in enumerate(load):
            if arrival.at == now:
                ids_of[index] = made.submit(arrival.request)
            if arrival.cancelled_at is not None and index in ids_of and arrival.cancelled_at == now:
                made.cancel(ids_of[index])
        works = made.step()
        assert works or not made.states, f"step {now} runs none of {len(made.states)} requests"
        now += 1
        assert now <= most, f"{len(made.states)} requests are left after {most} steps"
    assert made.pages.num_used == 0


@settings(max_examples=600, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_request_ends_whatever_the_load_and_no_step_is_empty(seed: int) -> None:
    draw = random.Random(seed)
    page_size, batch = draw.randint(1, 5), draw.randint(1, 6)
    spec = EngineSpec(
        page_size=page_size,
        cache_tokens=(-(-LONGEST // page_size) + draw.choice([0, 0, 1, 3])) * page_size,
        max_batch=batch,
        step_tokens=batch + draw.randint(0, 12),
    )
    made = ModelFree(
        spec,
        window=draw.choice([None, None, None, draw.randint(2, 9)]),
        draft_tokens=draw.choice([0, 0, 1, 3]),
        accepted=[draw.randint(0, 3) for _ in range(3)],
    )
    run(made, random_load(draw))


def test_a_waiting_request_that_does_not_fit_does_not_stop_the_prompts_of_running_ones() -> None:
    """A, 4 pages; B, 6 with the same first 3; C, 5 that nothing shares; and a short one, in a pool of 10."""
    made = Engine(
        tiny("gqa"),
        spec=EngineSpec(page_size=4, cache_tokens=40, max_batch=8, step_tokens=8),
    )
    common, greedy = tuple(range(12)), SamplingParams(max_tokens=1, temperature=0)
    prompts = [(*common, 1, 2, 3), (*common, *range(20, 30)), tuple(range(47, 29, -1)), (9, 9, 9)]
    names = [made.submit(Request(prompt=prompt, params=greedy)) for prompt in prompts]
    outputs = finish(made)
    assert [len(ids(outputs[name])) for name in names] == [1, 1, 1, 1]
    assert made.stats.steps < 12


def test_an_engine_that_plans_nothing_while_requests_are_under_way_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Engine(tiny("gqa"), spec=EngineSpec(page_size=4, cache_tokens=400))
    made.submit(Request(prompt=(1, 2, 3), params=SamplingParams(max_tokens=4)))
    monkeypatch.setattr(made.scheduler, "schedule", lambda: [])
    with pytest.raises(
        EngineError, match=r"none of 0 running and 1 waiting requests, with 0 of 100 pages.*cancel them"
    ):
        made.step()
    made.cancel(0)
    assert made.step() == []
