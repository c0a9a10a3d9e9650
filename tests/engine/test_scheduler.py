"""Who runs when: decoding first, prompts in chunks, priorities, room made for them, windows left behind."""

from __future__ import annotations

import pytest

from fathom.engine.engine import Engine
from fathom.engine.request import Request
from fathom.engine.state import RequestState
from fathom.errors import ContextError
from fathom.spec import EngineSpec, SamplingParams
from tests.engine.reference import alone, finish, ids, tiny, verify


def engine(kind: str = "gqa", **fields: object) -> Engine:
    spec = {"page_size": 4, "cache_tokens": 160, "max_batch": 4, "step_tokens": 16} | fields
    return Engine(tiny(kind), spec=EngineSpec(**spec))  # type: ignore[arg-type]


def request(length: int, max_tokens: int = 8, *, first: int = 1, priority: int = 0, salt: str = "") -> Request:
    prompt = tuple((first + 7 * index) % 48 for index in range(length))
    return Request(
        prompt=prompt, params=SamplingParams(max_tokens=max_tokens, temperature=0), priority=priority, salt=salt
    )


def planned(made: Engine) -> dict[int, int]:
    """Plan a step and run it; return the tokens of each request in it."""
    plan, works = made.scheduler.schedule, {}

    def spy() -> list:  # type: ignore[type-arg]
        chosen = plan()
        works.update({work.state.id: work.tokens for work in chosen})
        return chosen

    made.scheduler.schedule = spy  # type: ignore[method-assign]
    made.step()
    made.scheduler.schedule = plan  # type: ignore[method-assign]
    verify(made)
    return works


def state(made: Engine, name: int) -> RequestState:
    return next(s for s in (*made.scheduler.running, *made.scheduler.waiting) if s.id == name)


def test_decoding_comes_first_and_prompts_fill_the_rest_of_a_step_in_order() -> None:
    made = engine()
    a = made.submit(request(3))
    assert planned(made) == {a: 3}
    b, c = made.submit(request(20, first=2)), made.submit(request(9, first=3))
    assert planned(made) == {a: 1, b: 15}
    assert planned(made) == {a: 1, b: 5, c: 9}
    assert planned(made) == {a: 1, b: 1, c: 1}


def test_higher_priority_goes_first_and_equal_ones_by_arrival() -> None:
    made = engine(max_batch=1)
    names = {made.submit(request(3, 2, first=n, priority=p)): p for n, p in enumerate([0, 2, 1, 2])}
    ended = [name for name, outputs in finish(made).items() if outputs[-1].finish_reason]
    assert [names[name] for name in ended] == [2, 2, 1, 0]
    assert ended[0] < ended[1]


def test_a_higher_priority_takes_the_place_of_a_lower_one_whose_answer_stays_the_same() -> None:
    made = engine(max_batch=2)
    low = [request(6, 20, first=n) for n in (1, 2)]
    names = [made.submit(each) for each in low]
    made.step()
    made.step()
    high = made.submit(request(5, 4, first=3, priority=1))
    made.step()
    assert {s.id for s in made.scheduler.running} == {names[0], high}
    rest = finish(made)
    assert made.stats.preemptions == 1
    for name, each in zip(names, low, strict=True):
        whole, later = [token.token_id for token in alone(tiny("gqa"), each)], ids(rest[name])
        assert len(later) > 15
        assert whole[-len(later) :] == later


def test_where_pages_run_out_the_latest_of_the_lowest_priority_waits() -> None:
    made = engine(cache_tokens=48, max_batch=4)
    names = [made.submit(request(8, 24, first=n, priority=p)) for n, p in ((1, 0), (2, 1), (3, 0))]
    gone: list[int] = []
    while not gone:
        made.step()
        verify(made)
        gone = [s.id for s in made.scheduler.waiting if s.drawn]
    assert gone == [names[2]]
    assert not state(made, names[2]).pages
    finish(made)
    assert made.stats.pages_used == 0


def test_a_request_waits_until_pages_for_its_whole_prompt_are_there() -> None:
    made = engine(cache_tokens=48)
    a = made.submit(request(30, 2))
    b = made.submit(request(20, 2, first=2))
    assert planned(made) == {a: 16}
    assert planned(made) == {a: 14}
    assert [s.id for s in made.scheduler.waiting] == [b]
    finish(made)
    assert made.stats.preemptions == 0


def test_a_prompt_does_not_take_the_page_that_a_running_answer_needs_next() -> None:
    made = engine(cache_tokens=48)
    a = made.submit(request(30, 10))
    made.submit(request(14, 2, first=2))
    outputs = finish(made)
    assert made.stats.preemptions == 0
    assert next(iter(outputs)) == a


def test_a_request_larger_than_the_pool_is_refused_with_what_to_raise() -> None:
    made = engine(cache_tokens=48)
    with pytest.raises(ContextError, match=r"40 tokens and max_tokens 9 exceed the pool of 48.*cache_tokens to 49"):
        made.submit(request(40, 9))
    made.submit(request(40, 8))
    assert len(ids(finish(made)[0])) == 8


def test_choices_of_one_prompt_compute_it_once() -> None:
    made = engine(cache_tokens=400, max_batch=8, step_tokens=64)
    names = [made.submit(request(22, 5)) for _ in range(6)]
    assert planned(made) == {names[0]: 22}
    assert planned(made) == {names[0]: 1, **dict.fromkeys(names[1:], 2)}
    outputs = finish(made)
    assert {outputs[name][-1].cached_tokens for name in names[1:]} == {20}
    assert made.stats.cached_tokens == 100
    assert len({tuple(ids(outputs[name])) for name in names[1:]}) == 1


def test_a_prompt_is_never_wholly_cached_since_its_last_token_must_be_run() -> None:
    made = engine()
    made.submit(request(8, 3))
    first = finish(made)[0]
    made.submit(request(8, 3))
    second = finish(made)[1]
    assert [output.cached_tokens for output in (first[-1], second[-1])] == [0, 4]
    assert ids(first) == ids(second)


def test_an_answer_continued_by_its_reader_is_found_in_the_cache() -> None:
    made = engine()
    prompt = request(9, 8)
    made.submit(prompt)
    answer = ids(finish(made)[0])
    longer = Request(prompt=(*prompt.prompt, *answer, 1, 2), params=prompt.params)
    made.submit(longer)
    outputs = finish(made)[1]
    assert outputs[-1].cached_tokens == 16
    assert ids(outputs) == [token.token_id for token in alone(tiny("gqa"), longer)]


def test_salts_share_nothing_and_without_the_prefix_cache_nobody_does() -> None:
    made = engine(max_batch=1)
    for salt in ("a", "b", "a"):
        made.submit(request(12, 2, salt=salt))
    assert [outputs[-1].cached_tokens for outputs in finish(made).values()] == [0, 0, 8]
    without = engine(max_batch=1, prefix_cache=False)
    for _ in range(2):
        without.submit(request(12, 2))
    assert [outputs[-1].cached_tokens for outputs in finish(without).values()] == [0, 0]
    assert without.stats.pages_cached == 0


@pytest.mark.parametrize(("page", "step_tokens"), [(1, 8), (4, 8), (4, 64), (8, 3)])
def test_a_window_keeps_no_more_pages_than_it_can_see(page: int, step_tokens: int) -> None:
    window = 10
    most = -(-(window + min(window, step_tokens)) // page) + 1
    made = engine("window", page_size=page, cache_tokens=most * page, step_tokens=step_tokens, max_batch=1)
    asked = request(60, 30)
    made.submit(asked)
    held: list[int] = []
    outputs = finish(made, lambda: held.extend(len(s.pages) for s in made.scheduler.running))
    assert max(held) <= most
    assert ids(outputs[0]) == [token.token_id for token in alone(tiny("window"), asked)]
    assert made.stats.pages_cached == 0


def test_chunks_never_exceed_the_window() -> None:
    made = engine("window", step_tokens=64)
    name = made.submit(request(35))
    assert [planned(made)[name] for _ in range(5)] == [10, 10, 10, 5, 1]


def test_cancelled_requests_give_back_their_pages_at_once_wherever_they_are() -> None:
    made = engine(max_batch=2)
    names = [made.submit(request(20, 9, first=n)) for n in range(4)]
    made.step()
    assert made.stats.pages_used > 0
    for name in (*names, 99):
        made.cancel(name)
        verify(made)
    assert (made.stats.pages_used, made.has_work, made.step()) == (0, False, [])
    made.cancel(names[0])
