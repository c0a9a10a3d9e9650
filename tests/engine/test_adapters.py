"""Requests of different adapters in one engine, against engines of the merged models."""

from __future__ import annotations

import copy

import pytest
import torch

from fathom.engine.engine import Engine
from fathom.engine.request import Request
from fathom.errors import SpecError
from fathom.model import Decoder, build
from fathom.model.adapters.adapter import Adapter
from fathom.spec.adapter import LoraSpec
from fathom.spec.engine import EngineSpec
from fathom.spec.sampling import SamplingParams
from tests.checkpoint.peft.test_peft import trained
from tests.published import SPECS

ENGINE = EngineSpec(max_batch=8, cache_tokens=2048, page_size=16)
PROMPTS = [tuple(range(5, 40)), tuple(range(5, 38)), (7, 9, 11), tuple(range(5, 40))]
PARAMS = [SamplingParams(max_tokens=12, temperature=t, seed=3, ignore_eos=True) for t in (0.0, 1.0, 0.0, 0.7)]


def merged(base: Decoder, adapter: Adapter) -> Decoder:
    model = copy.deepcopy(base)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(adapter.merged(name, tensor))
    return model


def drain(engine: Engine, requests: list[Request]) -> list[list[int]]:
    """Submit all requests at once and return the tokens of each."""
    found: dict[int, list[int]] = {engine.submit(request): [] for request in requests}
    while engine.has_work:
        for output in engine.step():
            found[output.request_id] += [token.token_id for token in output.tokens]
    return list(found.values())


def test_mixed_requests_are_answered_as_by_the_merged_models_each() -> None:
    base = build(SPECS["tiny-deepseek_v2"], seed=3).eval()
    adapters = {
        "all": trained(base, LoraSpec(rank=3, alpha=12.0)),
        "head": trained(base, LoraSpec(rank=2, targets=("o_proj",), modules_to_save=("lm_head",))),
    }
    engine = Engine(base, spec=ENGINE)
    for name, adapter in adapters.items():
        engine.add_adapter(name, adapter)
    names = [None, "all", "head"]
    requests = [
        Request(prompt=prompt, params=params, adapter=name)
        for prompt, params in zip(PROMPTS, PARAMS, strict=True)
        for name in names
    ]
    together = drain(engine, requests)
    again = drain(engine, requests)
    assert again == together
    assert engine.stats.cached_tokens > 0
    for index, name in enumerate(names):
        alone = Engine(base if name is None else merged(base, adapters[name]), spec=ENGINE)
        expected = drain(alone, [Request(prompt=p, params=s) for p, s in zip(PROMPTS, PARAMS, strict=True)])
        assert together[index::3] == expected, name
    assert together[0] != together[1]
    assert together[0] != together[2]
    assert engine.leaked_pages == 0


def test_unknown_and_repeated_adapters_are_refused() -> None:
    base = build(SPECS["tiny-llama"], seed=3).eval()
    engine = Engine(base, spec=ENGINE)
    with pytest.raises(SpecError, match="the engine has no 'x'; use one it has: none"):
        engine.submit(Request(prompt=(5,), adapter="x"))
    engine.add_adapter("x", trained(base))
    with pytest.raises(SpecError, match="'x' names two adapters"):
        engine.add_adapter("x", trained(base))
