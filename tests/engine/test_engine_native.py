"""The engine by the native step against each request alone by the model's modules."""

from __future__ import annotations

import random
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from fathom.engine import engine as module
from fathom.engine.engine import Engine
from fathom.engine.request import Output, Request
from fathom.model.build import build
from fathom.model.decoder import Decoder
from fathom.model.native import NativeModel, Refusal
from fathom.spec import EngineSpec, SamplingParams
from tests.engine.drafting import with_mtp
from tests.engine.reference import KINDS, finish, ids, tiny
from tests.engine.test_engine_mixtures import random_request, run_mixture

pytestmark = pytest.mark.usefixtures("native")
SPEC = EngineSpec(page_size=4, cache_tokens=100, max_batch=6, step_tokens=20)
LOUD = SamplingParams(max_tokens=8, temperature=0, logprobs=3, prompt_logprobs=2)


def single(model: Decoder) -> Decoder:
    """A copy in float32, which the native step takes."""
    copy = build(model.spec, seed=0).eval()
    copy.load_state_dict(model.state_dict())
    return copy


@pytest.mark.parametrize("kind", KINDS)
def test_any_mixture_gives_each_request_what_the_modules_give_it_alone(kind: str) -> None:
    draw = random.Random(20 + KINDS.index(kind))
    requests = [random_request(draw) for _ in range(15)]
    spec = replace(SPEC, cache_tokens=40 if kind == "window" else 80)
    engine = run_mixture(single(tiny(kind)), spec, requests, draw)
    assert isinstance(engine.native, NativeModel)
    assert engine.stats.preemptions > 0


def test_drafts_of_the_mtp_module_change_no_answer() -> None:
    draw = random.Random(30)
    requests = [random_request(draw) for _ in range(15)]
    engine = run_mixture(single(with_mtp(0.05)), replace(SPEC, drafting="mtp", draft_tokens=2), requests, draw)
    assert isinstance(engine.native, NativeModel)
    assert engine.stats.accepted > 0


def both(
    model: Decoder, spec: EngineSpec, requests: Sequence[Request], monkeypatch: pytest.MonkeyPatch
) -> list[dict[int, list[Output]]]:
    """Answer the requests by the native step, then by the modules."""
    answers = []
    for refused in (False, True):
        if refused:
            monkeypatch.setattr(module, "native_step", lambda *given: Refusal("a test asks for the modules"))
        engine = Engine(model, spec=spec)
        assert isinstance(engine.native, Refusal if refused else NativeModel)
        for request in requests:
            engine.submit(request)
        answers.append(finish(engine))
    return answers


def scores(outputs: Sequence[Output]) -> list[float]:
    """Log-probabilities of the prompt's tokens, then of the answer's."""
    prompt = next(each.prompt_logprobs for each in outputs if each.prompt_logprobs)
    drawn = [token for output in outputs for token in output.tokens]
    return [token.logprob for token in (*prompt, *drawn) if token is not None]


def test_logprobs_of_prompts_and_answers_and_recorded_routing_are_the_modules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = [Request(prompt=tuple(range(1, 2 + length)), params=LOUD) for length in (3, 11, 26)]
    native, modules = both(single(tiny("mla")), replace(SPEC, record_routing=True), requests, monkeypatch)
    for name, expected in modules.items():
        got, last = native[name], native[name][-1]
        assert ids(got) == ids(expected)
        assert last.routing is not None
        assert torch.equal(last.routing, expected[-1].routing)  # type: ignore[arg-type]
        assert scores(got) == pytest.approx(scores(expected), abs=1e-4)


def test_numbers_that_are_not_finite_fail_their_request_alone() -> None:
    model = single(tiny("mla"))
    with torch.no_grad():
        model.embed_tokens.weight[7] = float("nan")
    engine = Engine(model, spec=SPEC)
    bad, good = (engine.submit(Request(prompt=(1, 2, token), params=replace(LOUD, max_tokens=4))) for token in (7, 9))
    outputs = finish(engine)
    assert "not finite" in (outputs[bad][-1].error or "")
    assert outputs[good][-1].finish_reason == "length"


def test_weights_that_changed_between_requests_are_followed() -> None:
    model = single(tiny("gqa"))
    engine = Engine(model, spec=SPEC)
    prompt, params = [[5, 6, 7]], SamplingParams(max_tokens=6, temperature=0)
    engine.sample(prompt, params)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1.3)
    engine.forget()
    modules = Engine(deepcopy(model).double(), spec=SPEC)
    assert isinstance(modules.native, Refusal)
    got, expected = (each.sample(prompt, params)[0].token_ids for each in (engine, modules))
    assert got == expected
