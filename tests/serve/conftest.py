"""One server that all tests of the server share, and a way to start others."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from fathom.engine.engine import Engine
from fathom.engine.request import Output
from fathom.inference.language_model import LanguageModel
from fathom.spec.engine import EngineSpec
from tests.serve.serving import Running, Serve, publish_tiny, running, with_engine


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a published directory of a tiny model with a tokenizer that can chat."""
    return publish_tiny(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def opened(directory: Path) -> LanguageModel:
    """Return the tiny model."""
    return LanguageModel.open(directory, device="cpu")


@pytest.fixture(scope="session")
def serve(opened: LanguageModel) -> Serve:
    """Return a function that serves the tiny model by an engine of its own, as a context manager."""

    def served(engine: EngineSpec | None = None, **settings: object) -> contextlib.AbstractContextManager[Running]:
        spec = engine or EngineSpec(max_batch=16, cache_tokens=8192, page_size=16)
        return running(with_engine(opened, spec), **settings)  # type: ignore[arg-type]

    return served


@pytest.fixture(scope="session")
def server(serve: Serve) -> Iterator[Running]:
    """Return a server that all tests share."""
    with serve() as found:
        yield found


@pytest.fixture(scope="session")
def client(server: Running) -> Iterator[openai.OpenAI]:
    """Return OpenAI's own client of the shared server."""
    with server.client() as found:
        yield found


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every step of an engine take 3 ms more, so that an answer lasts as long as one of a larger model."""
    step = Engine.step

    def slow(engine: Engine) -> list[Output]:
        time.sleep(0.003)
        return step(engine)

    monkeypatch.setattr(Engine, "step", slow)
