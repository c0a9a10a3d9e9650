"""What one request may ask for, and what happens when something goes wrong with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor

from fathom.engine import cache_sizing as room
from fathom.engine.engine import Engine
from fathom.engine.request import Request
from fathom.errors import SpecError
from fathom.model.decoder import Decoder
from fathom.spec import EngineSpec, SamplingParams
from tests.engine.reference import alone, finish, ids, tiny, verify

SPEC = EngineSpec(page_size=4, cache_tokens=400, max_batch=4, step_tokens=16)
GREEDY = SamplingParams(max_tokens=8, temperature=0)
PROMPT = (1, 2, 3, 4, 5, 6, 7, 8, 9)


class Script:
    """A constraint that allows one token after another, and then only the end."""

    def __init__(self, *tokens: int, accepted: tuple[int, ...] = ()) -> None:
        self.tokens, self.accepted = tokens, list(accepted)

    def fill_bitmask(self, bitmask_W: Tensor) -> bool:
        bitmask_W.zero_()
        token = self.tokens[len(self.accepted)]
        bitmask_W[token // 32] = torch.tensor(1 << (token % 32), dtype=torch.int64).to(torch.int32)
        return True

    def accept(self, token_id: int) -> None:
        if token_id == 13:
            raise ValueError("thirteen\nis refused")
        self.accepted.append(token_id)

    @property
    def finished(self) -> bool:
        return len(self.accepted) == len(self.tokens)

    def copy(self) -> Script:
        return Script(*self.tokens, accepted=tuple(self.accepted))


@torch.inference_mode()
def whole(model: Decoder, tokens: tuple[int, ...]) -> Tensor:
    return model.logits(model(torch.tensor([tokens])).hidden_BTD[0]).log_softmax(-1)


def test_log_probabilities_are_those_of_one_whole_forward_pass(model: Decoder) -> None:
    asked = SamplingParams(max_tokens=20, temperature=1.0, top_p=0.8, seed=4, logprobs=3, prompt_logprobs=2)
    (completion,) = Engine(model, spec=SPEC).sample([PROMPT * 3], asked)
    tokens = (*PROMPT * 3, *completion.token_ids)
    expected_TV = whole(model, tokens)
    assert completion.prompt[0] is None
    scored = [*completion.prompt[1:], *completion.details]
    assert [each.token_id for each in scored] == list(tokens[1:])
    for row_V, each in zip(expected_TV, scored, strict=False):
        assert each.logprob == pytest.approx(float(row_V[each.token_id]), abs=1e-4)
        best = row_V.topk(len(each.top))
        assert [token for token, _ in each.top] == best.indices.tolist()
        assert [logprob for _, logprob in each.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert {len(each.top) for each in completion.prompt[1:]} == {2}
    assert {len(each.top) for each in completion.details} == {3}


def test_the_prompts_log_probabilities_come_once_with_the_first_token_and_without_the_cache() -> None:
    engine = Engine(tiny("gqa"), spec=SPEC)
    asked = Request(prompt=PROMPT * 3, params=dataclasses.replace(GREEDY, prompt_logprobs=0))
    for _ in range(2):
        engine.submit(asked)
    for outputs in finish(engine).values():
        assert [output.prompt_logprobs is not None for output in outputs] == [True] + [False] * (len(outputs) - 1)
        assert len(outputs[0].prompt_logprobs or ()) == 27
        assert outputs[0].cached_tokens == 0


def test_log_probabilities_of_a_prompt_survive_being_put_back() -> None:
    engine = Engine(tiny("gqa"), spec=dataclasses.replace(SPEC, cache_tokens=52, max_batch=2))
    engine.submit(Request(prompt=PROMPT, params=dataclasses.replace(GREEDY, max_tokens=34), priority=1))
    asked = Request(prompt=PROMPT * 3, params=dataclasses.replace(GREEDY, prompt_logprobs=0))
    name = engine.submit(asked)
    outputs = finish(engine)[name]
    assert engine.stats.preemptions > 0
    got = [each.logprob for each in (outputs[0].prompt_logprobs or ())[1:] if each is not None]
    expected_TV = whole(tiny("gqa"), asked.prompt)
    assert got == pytest.approx([float(expected_TV[t, asked.prompt[t + 1]]) for t in range(26)], abs=1e-4)


def test_neither_end_nor_stop_tokens_come_before_min_tokens() -> None:
    free = [token.token_id for token in alone(tiny("gqa"), Request(prompt=PROMPT, params=GREEDY))]
    end, stop = free[1], free[0]
    engine = Engine(tiny("gqa"), eos_ids=[end], spec=SPEC)
    assert engine.sample([PROMPT], dataclasses.replace(GREEDY, stop_token_ids=(stop,)))[0].token_ids == ()
    asked = dataclasses.replace(GREEDY, stop_token_ids=(stop,), min_tokens=5)
    (completion,) = engine.sample([PROMPT], asked)
    assert len(completion.token_ids) >= 5
    assert not {end, stop} & set(completion.token_ids)


def test_a_constraint_is_told_every_token_and_ends_the_answer_when_only_the_end_may_come() -> None:
    engine, script = Engine(tiny("gqa"), spec=SPEC), Script(40, 31, 7)
    engine.submit(Request(prompt=PROMPT, params=GREEDY, constraint=script))
    outputs = finish(engine)[0]
    assert ids(outputs) == script.accepted == [40, 31, 7]
    assert outputs[-1].finish_reason == "stop"


def test_a_constraint_keeps_its_state_when_its_request_is_put_back() -> None:
    engine = Engine(tiny("gqa"), spec=dataclasses.replace(SPEC, cache_tokens=48))
    script = Script(*range(20, 40))
    engine.submit(Request(prompt=PROMPT, params=dataclasses.replace(GREEDY, max_tokens=30), priority=1))
    name = engine.submit(
        Request(prompt=PROMPT[::-1], params=dataclasses.replace(GREEDY, max_tokens=30), constraint=script)
    )
    assert ids(finish(engine)[name]) == list(range(20, 40))
    assert engine.stats.preemptions > 0


def test_a_constraint_that_raises_ends_its_own_request_with_one_line() -> None:
    engine = Engine(tiny("gqa"), spec=SPEC)
    bad = engine.submit(Request(prompt=PROMPT, params=GREEDY, constraint=Script(12, 13, 14)))
    good = engine.submit(Request(prompt=PROMPT, params=GREEDY))
    outputs = finish(engine)
    assert (outputs[bad][-1].finish_reason, outputs[bad][-1].error) == ("error", "ValueError: thirteen")
    assert outputs[good][-1].finish_reason == "length"


def poisoned(model: Decoder, token: int) -> Callable[[], None]:
    """Make one token's embedding infinite, and return what undoes it."""
    kept = model.embed_tokens.weight.detach().clone()
    with torch.no_grad():
        model.embed_tokens.weight[token] = torch.inf

    def undo() -> None:
        with torch.no_grad():
            model.embed_tokens.weight.copy_(kept)

    return undo


@pytest.mark.parametrize("place", [0, 5, 19])
def test_numbers_that_are_not_finite_fail_one_request_and_leave_nothing_behind(place: int) -> None:
    model = tiny("gqa")
    engine = Engine(model, spec=SPEC)
    undo = poisoned(model, 45)
    try:
        bad = tuple(45 if index == place else 1 + index for index in range(20))
        names = [engine.submit(Request(prompt=prompt, params=GREEDY)) for prompt in (bad, PROMPT)]
        outputs = finish(engine)
        assert outputs[names[0]][-1].finish_reason == "error"
        assert "not finite" in (outputs[names[0]][-1].error or "")
        assert ids(outputs[names[1]]) == [
            token.token_id for token in alone(model, Request(prompt=PROMPT, params=GREEDY))
        ]
        assert engine.sample([bad], GREEDY)[0].finish_reason == "error"
    finally:
        undo()
    for layer in engine.pool.layers:
        for part in layer:
            every = torch.arange(engine.pool.num_pages)
            assert part.read(every, engine.pool.scratch[0]).isfinite().all()
    assert engine.stats.pages_used == 0


def test_a_failing_pass_ends_its_requests_raises_to_sample_and_leaves_the_engine_usable() -> None:
    model = tiny("gqa")
    engine = Engine(model, spec=SPEC)
    stream = engine.stream(PROMPT, GREEDY)
    next(stream)
    with mock.patch.object(Decoder, "logits", side_effect=RuntimeError("out of\nmemory")):
        with pytest.raises(RuntimeError, match="out of"):
            engine.sample([PROMPT], GREEDY)
        engine.submit(Request(prompt=PROMPT, params=GREEDY))
        (output,) = engine.step()
    assert (output.finish_reason, output.error) == ("error", "RuntimeError: out of")
    assert (engine.stats.pages_used, engine.has_work) == (0, False)
    assert len(engine.sample([PROMPT], GREEDY)[0].token_ids) == 8
    assert list(stream) == []


def test_closing_a_stream_cancels_its_request_and_an_unread_one_never_began() -> None:
    engine = Engine(tiny("gqa"), spec=SPEC)
    unread = engine.stream(PROMPT, GREEDY)
    assert not engine.has_work
    stream = engine.stream(PROMPT, GREEDY)
    next(stream)
    assert engine.stats.running == 1
    stream.close()  # type: ignore[attr-defined]
    assert (engine.stats.running, engine.stats.pages_used) == (0, 0)
    assert len(list(unread)) == 8


def test_streams_samples_and_submitted_requests_may_interleave() -> None:
    engine = Engine(tiny("gqa"), spec=SPEC)
    prompts = [PROMPT[n:] for n in range(4)]
    expected = [[t.token_id for t in alone(tiny("gqa"), Request(prompt=p, params=GREEDY))] for p in prompts]
    name = engine.submit(Request(prompt=prompts[0], params=GREEDY))
    one, two = engine.stream(prompts[1], GREEDY), engine.stream(prompts[2], GREEDY)
    got = [[next(one)], [next(two)]]
    assert list(engine.sample([prompts[3]], GREEDY)[0].token_ids) == expected[3]
    got = [got[0] + list(one), got[1] + list(two)]
    assert got == expected[1:3]
    assert ids(finish(engine)[name]) == expected[0]


def test_a_model_whose_weights_changed_is_asked_anew_after_forgetting() -> None:
    model = tiny("gqa")
    engine = Engine(model, spec=SPEC)
    engine.sample([PROMPT], GREEDY)
    name = engine.submit(Request(prompt=PROMPT, params=GREEDY))
    with pytest.raises(SpecError, match="1 requests are under way"):
        engine.forget()
    engine.cancel(name)
    engine.forget()
    verify(engine)
    assert (engine.stats.pages_cached, engine.sample([PROMPT], GREEDY)[0].finish_reason) == (0, "length")
    assert engine.stats.cached_tokens == 0


def test_the_pool_holds_four_contexts_but_no_more_than_a_quarter_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("gqa")
    assert Engine(model).pool.num_pages * 32 == max(4 * 96, 32 * 256)
    small = EngineSpec(page_size=8, max_batch=1)
    assert Engine(model, spec=small).pool.num_pages * 8 == 4 * 96
    per_token = Engine(model).pool.bytes_per_token
    monkeypatch.setattr(room, "memory_bytes", lambda device: int(per_token * 4 * 100))
    assert Engine(model, spec=small).pool.num_pages == 12
    assert Engine(model, spec=EngineSpec(page_size=8, cache_tokens=101)).pool.num_pages == 13


def test_what_was_counted() -> None:
    engine = Engine(tiny("gqa"), spec=SPEC)
    engine.sample([PROMPT, PROMPT], GREEDY)
    stats = engine.stats
    assert (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens) == (18, 8, 16)
    assert (stats.running, stats.waiting, stats.preemptions, stats.pages_total) == (0, 0, 0, 100)
    assert stats.steps == 9
