"""Many requests at once against each alone: arrivals, priorities, cancellations, preemptions, shared beginnings."""

from __future__ import annotations

import random

import pytest
import torch

from fathom.engine.engine import Engine
from fathom.engine.request import Output, Request
from fathom.model.decoder import Decoder
from fathom.spec import EngineSpec, SamplingParams
from tests.engine.reference import KINDS, alone, ids, tiny, verify

EOS = frozenset({5, 17})
BEGINNINGS = [[random.Random(seed).randrange(48) for seed in range(40 * first, 40 * first + 40)] for first in range(3)]


def random_request(draw: random.Random) -> Request:
    prompt = draw.choice(BEGINNINGS)[: draw.choice([0, 4, 9, 16, 30])] + [
        draw.randrange(48) for _ in range(draw.randint(1, 20))
    ]
    return Request(
        prompt=tuple(prompt),
        params=SamplingParams(
            max_tokens=draw.randint(1, 24),
            temperature=draw.choice([0.0, 0.0, 1.0]),
            top_p=draw.choice([1.0, 0.9]),
            repetition_penalty=draw.choice([1.0, 1.3]),
            seed=draw.randrange(100),
            ignore_eos=draw.random() < 0.7,
            stop_token_ids=draw.choice([(), (3, 4)]),
        ),
        priority=draw.choice([0, 0, 1, 2]),
        salt=draw.choice(["", "", "tenant"]),
    )


def run_mixture(model: Decoder, spec: EngineSpec, requests: list[Request], draw: random.Random) -> Engine:
    """Submit at random steps, cancel some at random moments, and compare every answer with its own."""
    bound = 1e-4 if model.dtype == torch.float32 else 1e-5
    engine = Engine(model, eos_ids=EOS, spec=spec)
    queue, submitted, cancelled = list(requests), {}, []
    outputs: dict[int, list[Output]] = {}
    while queue or engine.has_work:
        for _ in range(draw.choice([0, 0, 1, 3])):
            if queue:
                request = queue.pop()
                submitted[engine.submit(request)] = request
        live = [state.id for state in (*engine.scheduler.running, *engine.scheduler.waiting)]
        if live and draw.random() < 0.03:
            cancelled.append(draw.choice(live))
            engine.cancel(cancelled[-1])
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
        verify(engine)
    assert (engine.stats.pages_used, engine.stats.running, engine.stats.waiting) == (0, 0, 0)
    for name, request in submitted.items():
        answer = alone(model, request, EOS)
        expected, got = [token.token_id for token in answer], ids(outputs.get(name, []))
        if name in cancelled:
            assert got == expected[: len(got)]
            continue
        assert got == expected, outputs[name][-1]
        assert outputs[name][-1].finish_reason == ("length" if len(got) == request.params.max_tokens else "stop")
        logprobs = [token.logprob for output in outputs[name] for token in output.tokens]
        assert logprobs == pytest.approx([token.logprob for token in answer], abs=bound)
    return engine


@pytest.mark.parametrize("kind", KINDS)
def test_any_mixture_of_requests_gives_each_the_answer_it_gets_alone(kind: str) -> None:
    draw = random.Random(KINDS.index(kind) + 1)
    requests = [random_request(draw) for _ in range(50)]
    spec = EngineSpec(page_size=4, cache_tokens=40 if kind == "window" else 120, max_batch=6, step_tokens=20)
    engine = run_mixture(tiny(kind), spec, requests, draw)
    assert engine.stats.preemptions > 0
    assert (engine.stats.cached_tokens > 0) == (kind != "window")
