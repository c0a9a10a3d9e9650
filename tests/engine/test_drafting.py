"""Drafts change no answer: whatever is drafted, each request says what it says alone, in fewer steps or not."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from fathom.engine.engine import Engine
from fathom.engine.request import Request
from fathom.errors import SpecError
from fathom.model.decoder import Decoder
from fathom.spec import EngineSpec, SamplingParams
from fathom.spec.engine import Drafting
from tests.engine.drafting import with_mtp
from tests.engine.reference import alone, finish, ids, tiny
from tests.engine.test_engine_mixtures import random_request, run_mixture

SPEC = EngineSpec(page_size=4, cache_tokens=400, max_batch=6, step_tokens=20)
GREEDY = SamplingParams(max_tokens=30, temperature=0)
# a model, what drafts, how many
MODELS: dict[str, tuple[Decoder, Drafting, int]] = {
    "mtp, seldom right": (with_mtp(), "mtp", 1),
    "mtp, often right": (with_mtp(0.05), "auto", 1),
    "mtp, often right, 3": (with_mtp(0.05), "auto", 3),
    "mtp, always right, 3": (with_mtp(0.0), "auto", 3),
    "ngram, mla": (tiny("mla"), "ngram", 3),
    "ngram, gqa": (tiny("gqa"), "ngram", 2),
    "ngram, window": (tiny("window"), "ngram", 3),
}


def answer(model: Decoder, prompt: tuple[int, ...], params: SamplingParams) -> list[int]:
    return [token.token_id for token in alone(model, Request(prompt=prompt, params=params))]


def repetitive(request: Request, draw: random.Random) -> Request:
    prompt = request.prompt[: draw.randint(2, 7)] * 6
    return replace(request, prompt=prompt[: len(request.prompt) + 4])


@pytest.mark.parametrize("case", MODELS)
def test_any_mixture_of_requests_gives_each_the_answer_it_gets_alone(case: str) -> None:
    model, kind, draft_tokens = MODELS[case]
    draw = random.Random(len(case))
    requests = [repetitive(random_request(draw), draw) for _ in range(24)]
    spec = replace(SPEC, cache_tokens=72, drafting=kind, draft_tokens=draft_tokens)
    stats = run_mixture(model, spec, requests, draw).stats
    if model.window is None:
        assert stats.preemptions > 0
        assert stats.cached_tokens > 0
    assert 0 < stats.accepted < stats.drafted


@pytest.mark.parametrize(("draft_tokens", "steps"), [(1, 16), (2, 11), (3, 9)])
@pytest.mark.parametrize("kind", ["mtp", "ngram"])
def test_right_drafts_save_steps(kind: Drafting, draft_tokens: int, steps: int) -> None:
    model = with_mtp(0.0)
    prompt = (1, *answer(model, (1,), GREEDY))  # by now it repeats itself
    engine = Engine(model, spec=replace(SPEC, drafting=kind, draft_tokens=draft_tokens, step_tokens=64))
    (completion,) = engine.sample([prompt], GREEDY)
    assert list(completion.token_ids) == answer(model, prompt, GREEDY)
    stats = engine.stats
    assert (stats.steps, stats.acceptance) == (steps, 1.0)
    assert stats.generated_tokens == 30 == stats.steps + stats.accepted


def test_a_share_of_the_drafts_is_accepted_where_the_module_is_a_share_right() -> None:
    engine = Engine(with_mtp(0.05), spec=replace(SPEC, drafting="mtp"))
    engine.sample([[n, 2 * n] for n in range(20)], GREEDY)
    assert 0.3 < engine.stats.acceptance < 0.95


@pytest.mark.parametrize("max_tokens", range(1, 9))
def test_the_last_token_is_neither_overshot_nor_missed(max_tokens: int) -> None:
    model, prompt = with_mtp(0.0), (5, 6, 7)
    params = replace(GREEDY, max_tokens=max_tokens)
    engine = Engine(model, spec=replace(SPEC, drafting="mtp", draft_tokens=3))
    (completion,) = engine.sample([prompt], params)
    assert list(completion.token_ids) == answer(model, prompt, params)
    assert completion.finish_reason == "length"
    assert engine.stats.generated_tokens == max_tokens


def test_the_context_can_be_filled_to_its_last_token() -> None:
    model, prompt = with_mtp(0.0), (3,) * 60
    params = replace(GREEDY, max_tokens=36)
    for kind in ("mtp", "ngram"):
        engine = Engine(model, spec=replace(SPEC, drafting=kind, draft_tokens=3))  # type: ignore[arg-type]
        assert list(engine.sample([prompt], params)[0].token_ids) == answer(model, prompt, params)


@pytest.mark.parametrize("at", range(3, 7))
def test_a_stop_token_inside_an_accepted_run_ends_the_answer_there(at: int) -> None:
    model, prompt = with_mtp(0.0), (5, 6, 7)
    whole = answer(model, prompt, GREEDY)
    assert len(set(whole[: at + 1])) == at + 1
    params = replace(GREEDY, stop_token_ids=(whole[at],))
    engine = Engine(model, spec=replace(SPEC, drafting="mtp", draft_tokens=4))
    name = engine.submit(Request(prompt=prompt, params=params))
    outputs = finish(engine)[name]
    assert (ids(outputs), outputs[-1].finish_reason) == (whole[:at], "stop")
    assert max(len(output.tokens) for output in outputs) > 1
    late = replace(params, min_tokens=at + 4)
    assert list(engine.sample([prompt], late)[0].token_ids) == answer(model, prompt, late)


@pytest.mark.parametrize("end", range(2, 12))
def test_pages_kept_for_others_hold_what_was_said_and_nothing_refused(end: int) -> None:
    model, prompt = with_mtp(0.0), (5, 6, 7)
    whole = answer(model, prompt, GREEDY)
    engine = Engine(model, eos_ids={whole[end]}, spec=replace(SPEC, drafting="mtp", draft_tokens=3))
    engine.sample([prompt], GREEDY)
    assert engine.stats.pages_cached <= (len(prompt) + end) // 4
    asked = (*prompt, *whole[: end + 4])
    (completion,) = engine.sample([asked], replace(GREEDY, max_tokens=20, ignore_eos=True))
    assert list(completion.token_ids) == answer(model, asked, replace(GREEDY, max_tokens=20))
    assert engine.stats.cached_tokens <= len(prompt) + end


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_drafts_take_no_page_that_another_needs(weight: float) -> None:
    model = with_mtp(weight)
    prompts = [(n, n + 1, n + 2) for n in range(4)]  # with what they draw, 33 tokens each
    engine = Engine(model, spec=replace(SPEC, cache_tokens=4 * 36, drafting="mtp", draft_tokens=7))
    names = [engine.submit(Request(prompt=prompt, params=GREEDY)) for prompt in prompts]

    def after_step() -> None:
        for state in engine.scheduler.running:
            assert len(state.pages) <= -(-len(state.tokens) // 4)

    outputs = finish(engine, after_step)
    assert engine.stats.preemptions == 0
    assert engine.stats.drafted > 30
    for name, prompt in zip(names, prompts, strict=True):
        assert ids(outputs[name]) == answer(model, prompt, GREEDY)


def test_drafts_take_what_others_leave_of_a_step() -> None:
    model = with_mtp(0.0)
    engine = Engine(model, spec=replace(SPEC, drafting="mtp", draft_tokens=3, max_batch=6, step_tokens=6))
    plan, sizes = engine.scheduler.schedule, []

    def spy() -> list:  # type: ignore[type-arg]
        works = plan()
        sizes.append([(work.tokens, work.num_draft_slots) for work in works])
        return works

    engine.scheduler.schedule = spy  # type: ignore[method-assign]
    prompts = [(n, n + 1, n + 2) for n in range(4)]
    completions = engine.sample(prompts, GREEDY)
    assert [list(c.token_ids) for c in completions] == [answer(model, prompt, GREEDY) for prompt in prompts]
    assert all(sum(tokens + room for tokens, room in works) <= 6 for works in sizes)
    assert [(1, 2), (1, 0), (1, 0), (1, 0)] in sizes


def test_log_probabilities_are_those_without_drafts() -> None:
    model = with_mtp(0.05)
    asked = SamplingParams(max_tokens=40, temperature=0.7, seed=4, logprobs=3, prompt_logprobs=2)
    prompt = tuple(range(9)) * 3
    plain = Engine(model, spec=SPEC).sample([prompt], asked)[0]
    engine = Engine(model, spec=replace(SPEC, drafting="auto", draft_tokens=2))
    drafted = engine.sample([prompt], asked)[0]
    assert engine.stats.accepted > 0
    assert drafted.token_ids == plain.token_ids
    for one, other in zip([*drafted.prompt[1:], *drafted.details], [*plain.prompt[1:], *plain.details], strict=True):
        assert one is not None
        assert other is not None
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [token for token, _ in one.top] == [token for token, _ in other.top]


def test_who_cannot_draft_by_mtp_is_told_so() -> None:
    assert Engine(tiny("mla"), spec=replace(SPEC, drafting="auto")).pool.bytes_per_token == (8 + 4) * 2 * 8
    assert Engine(with_mtp(), spec=replace(SPEC, drafting="auto")).pool.bytes_per_token == (8 + 4) * 3 * 8
    assert Engine(with_mtp(), spec=SPEC).pool.bytes_per_token == (8 + 4) * 2 * 8
    with pytest.raises(SpecError, match="drafting: mtp, but tiny-mla has no MTP module; use ngram"):
        Engine(tiny("mla"), spec=replace(SPEC, drafting="mtp"))
