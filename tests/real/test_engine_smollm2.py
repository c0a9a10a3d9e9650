"""Two hundred requests at once on real weights, against each alone with a plain cache."""

from __future__ import annotations

import random

import pytest

from fathom.engine.engine import Engine
from fathom.engine.request import Output, Request
from fathom.inference.language_model import LanguageModel
from fathom.spec import EngineSpec, SamplingParams
from tests.engine.reference import alone, ids, verify

CLOSE = 1e-3  # two tokens nearer than this in log-probability may change places by rounding


@pytest.mark.slow
def test_two_hundred_mixed_requests_get_the_answers_they_get_alone(model: LanguageModel, oracle) -> None:
    draw, text = random.Random(7), model.tokenizer.encode(oracle.text)
    engine = Engine(
        model.model, eos_ids=model.eos_ids, spec=EngineSpec(cache_tokens=640, max_batch=12, step_tokens=128)
    )
    queue = []
    for _ in range(200):
        start = draw.choice([0, 0, 0, draw.randrange(200)])
        prompt = text[start : start + draw.randint(1, 80)]
        params = SamplingParams(
            max_tokens=draw.randint(1, 8),
            temperature=draw.choice([0.0, 0.0, 0.8]),
            seed=draw.randrange(1000),
            logprobs=2,
        )
        queue.append(Request(prompt=tuple(prompt), params=params, priority=draw.choice([0, 0, 1])))
    submitted: dict[int, Request] = {}
    outputs: dict[int, list[Output]] = {}
    while queue or engine.has_work:
        for _ in range(draw.choice([0, 1, 4, 9])):
            if queue:
                request = queue.pop()
                submitted[engine.submit(request)] = request
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
        verify(engine)
    different = 0
    for name, request in submitted.items():
        answer = alone(model.model, request, model.eos_ids)
        got, expected = ids(outputs[name]), [token.token_id for token in answer]
        if got == expected:
            continue
        at = next(index for index, pair in enumerate(zip(got, expected, strict=False)) if pair[0] != pair[1])
        assert request.params.temperature == 0, (got, expected)
        assert answer[at].top[0][1] - answer[at].top[1][1] < CLOSE, (got, expected)
        different += 1
    assert different <= 2
    assert engine.stats.pages_used == engine.leaked_pages == 0
    assert engine.stats.cached_tokens > 0
    assert engine.stats.preemptions > 0
