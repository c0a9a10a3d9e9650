"""POST /v1/embeddings, by OpenAI's client and by hand."""

from __future__ import annotations

import base64
import threading
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
import torch

from fathom.inference.language_model import LanguageModel
from fathom.serve.settings import Limits
from tests.serve.serving import CONTEXT, SPEC, Running, Serve, wait_until

TEXTS = ["The river finds the road.", "A friend of the stone hears a song. " * 12, "河 🌊"]


def post(server: Running, **body: Any) -> httpx2.Response:
    with server.http() as http:
        return http.post("/v1/embeddings", json=body)


def test_the_official_client_gets_what_the_model_embeds(client: openai.OpenAI, opened: LanguageModel) -> None:
    wanted_SD = opened.embed(TEXTS)
    found = client.embeddings.create(model="tiny", input=TEXTS)  # asks for base64
    assert [each.index for each in found.data] == [0, 1, 2]
    torch.testing.assert_close(torch.tensor([each.embedding for each in found.data]), wanted_SD, rtol=0, atol=1e-5)
    assert [len(each.embedding) for each in found.data] == [SPEC.hidden_size] * 3
    tokens = sum(len(opened.embedding_tokens(text, "text")) for text in TEXTS)
    assert (found.usage.prompt_tokens, found.usage.total_tokens, found.model) == (tokens, tokens, "tiny")
    short = client.embeddings.create(model="tiny", input=TEXTS[0], dimensions=6, encoding_format="float")
    torch.testing.assert_close(
        torch.tensor(short.data[0].embedding), opened.embed(TEXTS[0], dimensions=6)[0], rtol=0, atol=1e-5
    )
    assert np.linalg.norm(short.data[0].embedding) == pytest.approx(1)


def test_texts_ids_and_both_encodings_are_the_same(server: Running, opened: LanguageModel) -> None:
    ids = [list(opened.embedding_tokens(text, "text")) for text in TEXTS]
    wanted = post(server, input=TEXTS).json()["data"]
    for form in ({"input": ids}, {"input": TEXTS, "encoding_format": "float", "user": "u", "pooling": "mean"}):
        found = post(server, **form).json()["data"]
        np.testing.assert_allclose([each["embedding"] for each in found], [each["embedding"] for each in wanted])
    alone = post(server, input=ids[0], encoding_format="base64").json()["data"]
    packed = np.frombuffer(base64.b64decode(alone[0]["embedding"]), "<f4")
    np.testing.assert_allclose(packed, wanted[0]["embedding"], atol=1e-6)
    last = post(server, input=TEXTS[0], pooling="last").json()["data"][0]["embedding"]
    np.testing.assert_allclose(last, opened.embed(TEXTS[0], pooling="last")[0], atol=1e-5)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"input": ""}, "input", "input: is an empty text; give one"),
        ({"input": []}, "input", "input: is an empty list; give a text, texts or token ids"),
        ({"input": ["a", ""]}, "input[1]", "input[1]: is an empty text"),
        ({"input": [[1], []]}, "input[1]", "input[1]: has no tokens"),
        ({"input": [[1], [2] * (CONTEXT + 1)]}, "input[1]", f"input[1]: has {CONTEXT + 1} tokens"),
        ({"input": [[1], [70_000]]}, "input[1]", "input[1]: 70000 is outside the vocabulary"),
        ({"input": "a", "dimensions": 49}, "dimensions", "dimensions: 49 is not within 1 and 48"),
        ({"input": "a", "dimensions": 0}, "dimensions", "dimensions: "),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "encoding_format: "),
        ({"input": "a", "pooling": "max"}, "pooling", "pooling: "),
        ({"input": {"text": "a"}}, "input", "input"),
        ({}, "input", "input: is missing"),
        ({"input": ["a"] * 2049}, "input", "input: 2049 inputs exceed 2048; split the request"),
    ],
)
def test_bad_input_is_refused_by_name(server: Running, body: dict[str, Any], param: str, words: str) -> None:
    answer = post(server, **body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["message"].startswith(words)
    assert error["param"] == param


def test_all_tokens_together_are_bounded(serve: Serve) -> None:
    with serve(limits=Limits(embedding_tokens=10)) as server:
        assert post(server, input=[[1] * 5, [2] * 5]).status_code == 200
        refused = post(server, input=[[1] * 5, [2] * 6])
        assert refused.json()["error"]["message"] == "input: more than 10 tokens in all; split the request"


@pytest.mark.usefixtures("slow_steps")
def test_an_answer_goes_on_while_many_texts_are_embedded(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine steps between two passes of the embedding."""
    order: list[str] = []
    engine, model = server.service.worker.engine, server.service.model.model
    step, run = engine.step, type(model).forward
    monkeypatch.setattr(engine, "step", lambda: (order.append("step"), step())[1])

    def forward(self: Any, *given: Any, **named: Any) -> Any:
        if named.get("packed") is not None:
            order.append("embed")
        return run(self, *given, **named)

    monkeypatch.setattr(type(model), "forward", forward)
    body = {"prompt": "The river", "max_tokens": 300, "ignore_eos": True}
    with server.http() as http:
        thread = threading.Thread(target=lambda: http.post("/v1/completions", json=body))
        thread.start()
        assert wait_until(lambda: engine.stats.running == 1)
        assert post(server, input=[[3] * 400] * 12).status_code == 200
        assert engine.stats.running == 1  # the embedding ended first
        thread.join(30)
    first = order.index("embed")
    last = len(order) - 1 - order[::-1].index("embed")
    assert order.count("embed") == 12
    assert "embed embed" not in " ".join(order[first : last + 1])


def test_a_client_that_leaves_ends_its_embedding(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    model = server.service.model.model
    run, begun, free, passes = type(model).forward, threading.Event(), threading.Event(), []

    def forward(self: Any, *given: Any, **named: Any) -> Any:
        passes.append(1)
        begun.set()
        assert free.wait(30)
        return run(self, *given, **named)

    monkeypatch.setattr(type(model), "forward", forward)
    with pytest.raises(httpx2.TimeoutException), httpx2.Client(trust_env=False, timeout=0.3) as http:
        http.post(f"{server.url}/v1/embeddings", json={"input": [[3] * 500] * 20})
    assert begun.is_set()
    assert wait_until(lambda: server.service.metrics.in_progress == 0)
    free.set()
    assert wait_until(lambda: server.service.worker.stalled_seconds == 0)
    assert len(passes) <= 2


def test_a_shutdown_lets_an_embedding_end(serve: Serve) -> None:
    answers: list[int] = []
    with serve() as server:
        thread = threading.Thread(target=lambda: answers.append(post(server, input=[[3] * 500] * 8).status_code))
        thread.start()
        assert wait_until(lambda: server.service.metrics.in_progress == 1)
    thread.join(30)
    assert answers in ([200], [503])
