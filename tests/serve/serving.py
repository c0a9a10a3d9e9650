"""A tiny model, a real server around it on a loopback port, and plain sockets to it."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import anthropic
import httpx2
import openai

from fathom.checkpoint.hf import save_hf
from fathom.inference.language_model import LanguageModel
from fathom.model import build
from fathom.serve.app import create_app
from fathom.serve.model_pool import ModelPool
from fathom.serve.run import Server, listen
from fathom.serve.service import Service
from fathom.serve.settings import ServeSettings
from fathom.spec import LatentAttention, MixtureOfExperts, ModelSpec, RopeSpec
from fathom.spec.engine import EngineSpec
from fathom.tokenizer import train_bpe

NAME = "tiny"
CONTEXT = 512
SPEC = ModelSpec(
    name=NAME,
    family="deepseek_v2",
    vocab_size=384,
    hidden_size=48,
    num_hidden_layers=2,
    attention=LatentAttention(num_heads=2, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8),
    max_position_embeddings=CONTEXT,
    intermediate_size=64,
    moe=MixtureOfExperts(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_shared_experts=1),
    first_k_dense_replace=1,
    rope=RopeSpec(layout="interleaved"),
    initializer_range=0.15,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
)
TEXT = (
    "The river finds the road and the garden keeps the tower. A friend of the stone hears a song at the window. "
    'def add(a, b):\n    return a + b\n{"name": "Paris", "count": 12, "list": [true, false, null]} '
)


def publish_tiny(root: Path) -> Path:
    """Write the tiny model and a tokenizer that can chat into a published directory; return it."""
    tokenizer = train_bpe([TEXT * 3], vocab_size=SPEC.vocab_size)
    tokenizer.save(root / "tokenizer")
    spec = dataclasses.replace(SPEC, vocab_size=tokenizer.vocab_size)
    save_hf(root / "model", spec, dict(build(spec, seed=7).state_dict()), tokenizer=root / "tokenizer")
    return root / "model"


def with_engine(opened: LanguageModel, engine: EngineSpec) -> LanguageModel:
    """Return an opened model with an engine of its own."""
    return LanguageModel(opened.model, opened.tokenizer, opened.path, opened.eos_ids, engine=engine)


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    url: str
    models: ModelPool
    server: Server

    @property
    def service(self) -> Service:
        """The first model, which must be loaded."""
        service = self.models.loaded(self.models.names[0])
        assert service is not None
        return service

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, key: str = "unused-key") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def anthropic(self, key: str = "unused-key") -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=self.url, api_key=key, max_retries=0, timeout=60)

    def http(self, **headers: str) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)

    def metric(self, name: str) -> float:
        with self.http() as client:
            lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def idle(self, seconds: float = 20.0) -> bool:
        """Wait until no request holds pages; False if that never happens."""
        return wait_until(lambda: self.service.worker.engine.stats.pages_used == 0, seconds) and wait_until(
            lambda: self.service.metrics.in_progress == 0, seconds
        )


Serve = Callable[..., contextlib.AbstractContextManager[Running]]


def wait_until(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@contextlib.contextmanager
def running(model: LanguageModel, *, max_waiting: int = 256, **settings: object) -> Iterator[Running]:
    """Serve a model in this process."""
    models = ModelPool.of(
        NAME, model, ServeSettings(**({"drain_seconds": 5.0, "access_log": "json"} | settings)), max_waiting=max_waiting
    )  # type: ignore[arg-type]
    with serving(models) as found:
        yield found


@contextlib.contextmanager
def serving(models: ModelPool) -> Iterator[Running]:
    """Serve a pool of models in this process."""
    app = create_app(models)
    bound = listen("127.0.0.1", 0)
    server = Server(app)
    thread = threading.Thread(target=lambda: server.run(sockets=[bound]), name="fathom-serve-test")
    thread.start()
    try:
        assert wait_until(lambda: server.started)
        yield Running(f"http://127.0.0.1:{bound.getsockname()[1]}", models, server)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
        assert not any(worker.healthy for worker in models.workers().values())
        models.close()


def raw(port: int, *parts: bytes, pause: float = 0.0, half_closed: bool = False) -> bytes:
    """Send bytes over a plain socket and return all that comes back; ``half_closed`` ends the sending half then."""
    received = b""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as connection,
        contextlib.suppress(ConnectionError),
    ):
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        if half_closed:
            connection.shutdown(socket.SHUT_WR)
        while chunk := connection.recv(65_536):
            received += chunk
    return received
