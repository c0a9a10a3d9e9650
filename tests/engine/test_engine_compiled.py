"""The engine with a compiled step answers as without; what would be compiled runs here as plain Python."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fathom.engine.engine import Engine
from fathom.engine.request import Request
from fathom.errors import ResourceError
from fathom.model import Decoder
from fathom.model.cache import SequenceChunk
from fathom.model.compiled import CompiledDecoding
from fathom.spec import EngineSpec, SamplingParams
from tests.engine.reference import alone, finish, ids


def test_lone_and_shared_steps_give_the_answers_of_requests_alone(
    model: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    run = CompiledDecoding.__call__

    def counted(self: CompiledDecoding, token: int, piece: SequenceChunk) -> Tensor:
        steps.append(token)
        return run(self, token, piece)

    monkeypatch.setattr(CompiledDecoding, "__call__", counted)
    greedy = [SamplingParams(max_tokens=count, temperature=0.0) for count in (20, 6)]
    requests = [Request(prompt=(5, 9, 2, 7, 1), params=greedy[0]), Request(prompt=(8, 3), params=greedy[1])]
    with torch.compiler.set_stance("force_eager"):
        engine = Engine(model, spec=EngineSpec(page_size=4, cache_tokens=128, compiled=True))
        steps.clear()
        numbers = [engine.submit(request) for request in requests]
        outputs = finish(engine)
    assert len(steps) >= 10  # the longer one is alone in the end
    for number, request in zip(numbers, requests, strict=True):
        assert ids(outputs[number]) == [token.token_id for token in alone(model, request)]


def test_without_a_compiler_the_engine_says_what_to_do(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no g++\nanywhere")

    monkeypatch.setattr(CompiledDecoding, "__call__", broken)
    with pytest.raises(ResourceError, match=r"no g\+\+ anywhere.*install a C\+\+ compiler or leave compile out"):
        Engine(model, spec=EngineSpec(compiled=True))
