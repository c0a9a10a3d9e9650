"""Answers that end by a rule of their caller: at its token, whatever was drafted behind it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fathom.engine.engine import Engine
from fathom.engine.request import Request
from fathom.errors import SpecError
from fathom.model.decoder import Decoder
from fathom.spec import EngineSpec, SamplingParams
from tests.engine.drafting import with_mtp
from tests.engine.reference import alone, finish, ids, tiny, verify

SPEC = EngineSpec(page_size=4, cache_tokens=400, max_batch=4, step_tokens=40)
PROMPT = (1, 2, 3)


class StopAfter:
    """Ends an answer at its n-th token, and counts what it is given."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.taken: list[int] = []

    def append(self, token_id: int) -> bool:
        self.taken.append(token_id)
        return len(self.taken) >= self.count


@pytest.mark.parametrize("count", range(1, 13))
@pytest.mark.parametrize(
    ("model", "drafting"),
    [(tiny("gqa"), "none"), (tiny("window"), "ngram"), (with_mtp(0.0), "mtp"), (with_mtp(0.05), "mtp")],
    ids=["plain", "window", "drafts always right", "drafts often right"],
)
def test_an_answer_ends_at_the_token_its_checker_says_and_later_requests_find_nothing_wrong_in_the_cache(
    model: Decoder, drafting: str, count: int
) -> None:
    spec = replace(SPEC, drafting=drafting, draft_tokens=3, record_routing=True)  # type: ignore[arg-type]
    engine, params = Engine(model, spec=spec), SamplingParams(max_tokens=12, temperature=0)
    whole = [token.token_id for token in alone(model, Request(prompt=PROMPT, params=params))]
    checker = StopAfter(count)
    (completion,) = engine.sample([PROMPT], params, stop_checkers=[checker])
    assert list(completion.token_ids) == whole[:count] == checker.taken
    assert (completion.finish_reason, completion.stop_token) == ("stop", None)
    assert engine.stats.generated_tokens == count
    if completion.routing is not None:
        assert len(completion.routing) == len(PROMPT) + count - 1  # type: ignore[arg-type]
    verify(engine)
    longer = Request(prompt=(*PROMPT, *whole[:count], 9, 9), params=params)
    engine.submit(longer)
    assert ids(next(iter(finish(engine).values()))) == [token.token_id for token in alone(model, longer)]


def test_a_checker_counts_only_once_min_tokens_are_there_and_sees_every_token() -> None:
    engine, checker = Engine(tiny("gqa"), spec=SPEC), StopAfter(2)
    params = SamplingParams(max_tokens=9, min_tokens=5, temperature=0)
    (completion,) = engine.sample([PROMPT], params, stop_checkers=[checker])
    assert len(completion.token_ids) == 5
    assert checker.taken == list(completion.token_ids)


def test_each_prompt_has_its_own_checker_or_none() -> None:
    engine, params = Engine(tiny("gqa"), spec=SPEC), SamplingParams(max_tokens=6, temperature=0)
    completions = engine.sample([PROMPT] * 3, params, stop_checkers=[StopAfter(2), None, StopAfter(4)])
    assert [(len(each.token_ids), each.finish_reason) for each in completions] == [
        (2, "stop"),
        (6, "length"),
        (4, "stop"),
    ]
    with pytest.raises(SpecError, match="stop_checkers: 1 for 2 prompts; give one for each prompt"):
        engine.sample([PROMPT] * 2, params, stop_checkers=[None])


def test_a_checker_that_raises_fails_its_request_and_no_other() -> None:
    class Broken:
        def append(self, token_id: int) -> bool:
            raise ValueError("no text")

    engine, params = Engine(tiny("gqa"), spec=SPEC), SamplingParams(max_tokens=6, temperature=0)
    names = [engine.submit(Request(prompt=PROMPT, params=params, stop_checker=each)) for each in (Broken(), None)]
    outputs = finish(engine)
    assert outputs[names[0]][-1].error == "ValueError: no text"
    assert outputs[names[1]][-1].finish_reason == "length"
