"""Several models in one server: what is listed, loaded, evicted and refused."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch

from fathom.checkpoint.hf import save_hf
from fathom.cli.served_models import NamedModel, OpeningOptions, definitions
from fathom.errors import CheckpointError, ResourceError, SpecError
from fathom.inference.language_model import LanguageModel
from fathom.model import build
from fathom.serve.model_definition import ModelDefinition
from fathom.serve.model_pool import ModelPool
from fathom.serve.settings import ServeSettings
from fathom.spec.engine import EngineSpec
from tests.serve.serving import SPEC, Running, serving, wait_until

ENGINE = EngineSpec(max_batch=8, cache_tokens=2048, page_size=16)
LONG = {"prompt": "The river", "max_tokens": 250, "ignore_eos": True, "stream": True}
Pool = Callable[..., AbstractContextManager[Running]]


@pytest.fixture(scope="module")
def directories(directory: Path, opened: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return three published directories of one shape with other weights each."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in ((8, "beta"), (9, "gamma")):
        state = build(opened.spec, seed=seed).state_dict()
        save_hf(root / name, opened.spec, dict(state), tokenizer=directory)
    return {"alpha": directory, "beta": root / "beta", "gamma": root / "gamma"}


def defined(directories: dict[str, Path], *names: str, memory: int = 1 << 40) -> list[ModelDefinition]:
    opening = OpeningOptions(device="cpu", dtype="auto", weights="plain", engine=ENGINE)
    aliases = {"alpha": ("gpt-4o",)}
    named = [NamedModel(name, str(directories[name]), aliases.get(name, ())) for name in names]
    return definitions(named, opening, memory)


@pytest.fixture
def pool(directories: dict[str, Path]) -> Pool:
    """Return a function that serves models by name, as many at once as are asked for."""

    def served(*names: str, at_once: int = 1, opens: dict[str, Any] | None = None, **settings: Any) -> Any:
        found = defined(directories, *names)
        found = [dataclasses.replace(each, open=(opens or {}).get(each.name, each.open)) for each in found]
        memory = found[0].nbytes * at_once + found[0].nbytes // 2
        return serving(ModelPool(found, ServeSettings(**{"drain_seconds": 5.0} | settings), memory=memory))

    return served


def complete(http: httpx2.Client, model: str | None, **more: Any) -> httpx2.Response:
    body = {"prompt": "The river", "max_tokens": 4, "temperature": 0} | more
    return http.post("/v1/completions", json=body if model is None else body | {"model": model})


def loaded(server: Running) -> set[str]:
    return set(server.models.workers())


def test_all_models_and_aliases_are_listed_without_loading_one(pool: Pool) -> None:
    with pool("alpha", "beta") as server, server.client() as client:
        cards = {card.id: card.model_dump() for card in client.models.list()}
        assert list(cards) == ["alpha", "gpt-4o", "beta"]
        assert [card["root"] for card in cards.values()] == ["alpha", "alpha", "beta"]
        for card in cards.values():
            facts = card["fathom"]
            assert (facts["family"], facts["loaded"], facts["can_chat"]) == ("deepseek_v2", False, True)
            assert facts["bytes"] > facts["parameters"] * 4
        assert client.models.retrieve("beta").id == "beta"
        assert loaded(server) == set()
        with server.http() as http:
            assert http.get("/ready").json() == {"status": "ready"}


def test_each_model_answers_as_it_does_alone_and_the_size_foretold_is_the_size_taken(
    pool: Pool, directories: dict[str, Path]
) -> None:
    with pool("alpha", "beta") as server, server.http() as http:
        for name in ("alpha", "beta", "gpt-4o"):
            model = LanguageModel.open(directories["beta" if name == "beta" else "alpha"], device="cpu")
            from fathom.spec.sampling import SamplingParams

            ids = [*model.tokenizer.prefix_ids, *model.tokenizer.encode("The river")]
            wanted = model.tokenizer.decode(model.generate(ids, SamplingParams(temperature=0, max_tokens=4)))
            answer = complete(http, name).json()
            assert answer["choices"][0]["text"] == wanted
            assert answer["model"] == ("beta" if name == "beta" else "alpha")
        foretold = server.models.card("alpha")["fathom"]["bytes"]
        assert server.metric("fathom_model_bytes") == pytest.approx(foretold, rel=0.05)


def test_the_least_recently_used_idle_model_is_evicted_and_its_counts_stay(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="fathom.serve")
    with pool("alpha", "beta", "gamma", at_once=2) as server, server.http() as http:
        for name in ("alpha", "beta", "alpha"):
            assert complete(http, name).status_code == 200
        assert loaded(server) == {"alpha", "beta"}
        assert complete(http, "gamma").status_code == 200
        assert loaded(server) == {"alpha", "gamma"}
        lines = http.get("/metrics").text.splitlines()
        assert 'fathom_generated_tokens_total{model="beta"} 4.0' in lines
        assert 'fathom_model_evictions_total{model="beta"} 1.0' in lines
        assert 'fathom_model_bytes{model="beta"} 0.0' in lines
        assert complete(http, "beta").status_code == 200
        assert 'fathom_generated_tokens_total{model="beta"} 8.0' in http.get("/metrics").text.splitlines()
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "fathom.serve"]
    events = [(line["event"].removeprefix("model_"), line["model"]) for line in lines]
    assert events == [
        ("loaded", "alpha"),
        ("loaded", "beta"),
        ("unloaded", "beta"),
        ("loaded", "gamma"),
        ("unloaded", "alpha"),
        ("loaded", "beta"),
    ]


def test_the_tensors_of_an_evicted_model_are_gone(pool: Pool) -> None:
    with pool("alpha", "beta") as server, server.http() as http:
        assert complete(http, "alpha").status_code == 200
        model, worker = server.service.model, server.service.worker
        pages = [
            referent for layer in model.engine.pool.layers for each in layer for referent in gc.get_referents(each)
        ]
        tensors = [*model.model.parameters(), *model.model.buffers(), *filter(torch.is_tensor, pages)]
        seen = [weakref.ref(each) for each in (*tensors, model.model, model.engine, model.engine.pool, worker)]
        assert len(seen) > 20
        assert any(torch.is_tensor(each) for each in pages)
        del model, worker, tensors, pages
        assert complete(http, "beta").status_code == 200
        assert [ref() for ref in seen if ref() is not None] == []


@pytest.mark.usefixtures("slow_steps")
def test_a_model_is_never_evicted_amid_an_answer(pool: Pool) -> None:
    with pool("alpha", "beta", load_timeout_seconds=0.3) as server, server.http() as http:
        with http.stream("POST", "/v1/completions", json=LONG | {"model": "alpha"}) as stream:
            lines = stream.iter_lines()
            next(lines)
            refused = complete(http, "beta")
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            error = refused.json()["error"]
            assert error["code"] == "model_loading"
            assert "'beta' was not loaded within 0.3 s" in error["message"]
            assert http.get("/health").status_code == 200
            assert loaded(server) == {"alpha"}
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        assert wait_until(lambda: complete(http, "beta").status_code == 200)
        assert loaded(server) == {"beta"}


@pytest.mark.slow
def test_a_model_in_constant_use_makes_way_for_another_and_comes_back(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests for alpha overlap, so that it is never idle; none of them fails."""
    monkeypatch.setattr("fathom.serve.model_pool._STARVATION_SECONDS", 0.1)
    statuses: list[int] = []
    stop = threading.Event()

    def use(http: httpx2.Client) -> None:
        while not stop.is_set():
            statuses.append(complete(http, "alpha", max_tokens=30, ignore_eos=True).status_code)

    with pool("alpha", "beta") as server, server.http() as http:
        threads = [threading.Thread(target=use, args=(http,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            assert wait_until(lambda: len(statuses) > 3)
            assert [complete(http, "beta").status_code for _ in range(2)] == [200, 200]
            seen = len(statuses)
            assert wait_until(lambda: len(statuses) > seen + 3)
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
    assert set(statuses) == {200}


def test_a_request_must_name_its_model_where_several_are_served(pool: Pool) -> None:
    with pool("alpha", "beta") as server, server.http() as http:
        missing = complete(http, None)
        assert (missing.status_code, missing.json()["error"]["param"]) == (400, "model")
        assert missing.json()["error"]["message"].endswith("name one of 'alpha', 'beta'")
        unknown = complete(http, "delta")
        assert unknown.status_code == 404
        assert unknown.json()["error"]["message"] == "model: 'delta' is not served here; use one of 'alpha', 'beta'"
        assert http.get("/v1/models/delta").status_code == 404
        assert http.get("/tokenizer_info").status_code == 400
        assert http.get("/tokenizer_info?model=beta").json()["vocab_size"] <= SPEC.vocab_size
        with server.client() as client, pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="delta", messages=[{"role": "user", "content": "a"}])


def test_a_model_that_cannot_be_loaded_fails_its_own_requests_only(pool: Pool) -> None:
    tries = []

    def broken(progress: Any) -> LanguageModel:
        tries.append(1)
        raise CheckpointError("beta/model.safetensors: is cut short; get the file again")

    opens = {"beta": broken, "gamma": lambda progress: 1 / 0}
    with pool("alpha", "beta", "gamma", opens=opens) as server, server.http() as http:
        for _ in range(2):
            answer = complete(http, "beta")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
            assert "is cut short; get the file again" in answer.json()["error"]["message"]
        assert len(tries) == 1  # a request soon after is not a reason to try again
        assert complete(http, "gamma").status_code == 500
        assert complete(http, "alpha").status_code == 200
        assert http.get("/health").status_code == 200
        assert 'fathom_model_load_failures_total{model="beta"} 1.0' in http.get("/metrics").text


@pytest.fixture
def held(directories: dict[str, Path]) -> Iterator[tuple[threading.Event, threading.Event, Callable[[Any], Any]]]:
    """Return whether a load has begun, the event that lets it end, and the load."""
    begun, free = threading.Event(), threading.Event()
    real = defined(directories, "beta")[0].open

    def load(progress: Any) -> Any:
        begun.set()
        free.wait(30)
        return real(progress)

    yield begun, free, load
    free.set()


def test_others_are_served_while_a_model_is_loaded_and_who_waits_for_it_gets_it(pool: Pool, held: Any) -> None:
    begun, free, load = held
    with pool("alpha", "beta", at_once=2, opens={"beta": load}) as server, server.http() as http:
        answers: list[int] = []
        threads = [threading.Thread(target=lambda: answers.append(complete(http, "beta").status_code)) for _ in "abc"]
        for thread in threads:
            thread.start()
        assert begun.wait(10)
        assert http.get("/health").status_code == 200
        assert [card["fathom"]["loaded"] for card in http.get("/v1/models").json()["data"]] == [False] * 3
        free.set()
        for thread in threads:
            thread.join(30)
        assert answers == [200] * 3
        assert complete(http, "alpha").status_code == 200
        assert loaded(server) == {"alpha", "beta"}
        assert server.metric("fathom_model_load_seconds_count") == 2


def test_a_client_that_leaves_while_its_model_is_loaded_leaves_it_idle(pool: Pool, held: Any) -> None:
    begun, free, load = held
    with pool("alpha", "beta", opens={"beta": load}) as server, server.http() as http:
        with pytest.raises(httpx2.TimeoutException):
            complete(httpx2.Client(base_url=server.url, timeout=0.3, trust_env=False), "beta")
        assert begun.is_set()
        free.set()
        assert wait_until(lambda: loaded(server) == {"beta"})
        assert complete(http, "alpha").status_code == 200  # nothing holds beta
        assert loaded(server) == {"alpha"}


def test_a_shutdown_ends_what_waits_for_a_model(pool: Pool, held: Any) -> None:
    begun, free, load = held
    answers: list[httpx2.Response] = []
    with pool("alpha", "beta", opens={"beta": load}) as server, server.http() as http:
        thread = threading.Thread(target=lambda: answers.append(complete(http, "beta")))
        thread.start()
        assert begun.wait(10)
        server.server.should_exit = True
        assert wait_until(lambda: server.models.lifecycle.draining)
        free.set()
        thread.join(30)
    assert [answer.status_code for answer in answers] == [503]
    assert answers[0].json()["error"]["code"] == "draining"


def test_a_model_beyond_the_memory_is_refused_with_a_size_that_does(directories: dict[str, Path]) -> None:
    settings = ServeSettings()
    found = defined(directories, "alpha", memory=1000)
    with pytest.raises(ResourceError, match="alpha alone takes") as error:
        ModelPool(found, settings, memory=1000)
    needed = int(str(error.value).partition("give at least ")[2].partition(",,")[0].split(", ")[0].replace(",", ""))
    ModelPool(defined(directories, "alpha", memory=needed), settings, memory=needed).close()


def test_two_models_of_one_name_are_refused(directories: dict[str, Path]) -> None:
    (alpha,) = defined(directories, "alpha")
    for other in (alpha, dataclasses.replace(alpha, name="gpt-4o", aliases=())):
        with pytest.raises(SpecError, match="names two models"):
            ModelPool([alpha, other], ServeSettings())
