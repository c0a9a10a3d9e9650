"""Request bodies: what real clients send, damaged, and hostile ones of every kind, to every route of a server."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fathom.inference.language_model import LanguageModel
from fathom.serve.settings import Limits
from fathom.spec.engine import EngineSpec
from tests.fuzz.driver import Target
from tests.fuzz.json_damage import damage
from tests.serve.request_bodies import HOSTILE
from tests.serve.serving import Running, publish_tiny, running, with_engine

_CLIENTS: Mapping[str, Any] = json.loads(
    (Path(__file__).parents[2] / "serve" / "api" / "client_requests.json").read_text(encoding="utf-8")
)
_TURN = {"role": "user", "content": [{"type": "text", "text": "a"}]}
_VALID: tuple[tuple[str, Any], ...] = (
    *((request["path"], request["body"]) for request in _CLIENTS.values()),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 2, "logprobs": 2, "echo": True, "stop": ["a"]}),
    ("/v1/embeddings", {"input": ["a", "b"], "encoding_format": "base64", "dimensions": 4}),
    ("/v1/embeddings", {"input": [[1, 2], [3]], "pooling": "last"}),
    ("/v1/responses", {"input": [{"type": "message", "role": "user", "content": "a"}], "metadata": {"a": "b"}}),
    ("/v1/responses/input_tokens", {"input": "a", "instructions": "b", "tools": [{"type": "function", "name": "f"}]}),
    (
        "/v1/messages",
        {"model": "tiny", "max_tokens": 2, "messages": [_TURN], "system": _TURN["content"]},
    ),
    ("/v1/messages/count_tokens", {"model": "tiny", "messages": [_TURN], "thinking": {"type": "adaptive"}}),
    ("/tokenize", {"messages": [_TURN], "return_token_strs": True}),
    ("/tokenize", {"prompt": "a <|begin|>"}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
)
_BYTES = (b"\x00", b"\xff", b'"', b"\\", b"[", b"{", b",", b"9" * 99)
_SIZES = (1, 100, 2000, 40_000, 300_000)


class RequestBodies(Target):
    """An input is a route, a line break and the body that is posted there.

    A body is answered, or refused with the field and a remedy; the server stays well.
    """

    name = "request_bodies"
    suffix = ".txt"
    seconds = 30.0
    memory_bytes = 0  # the address space of a server's threads is large; ``tests/serve`` measures what bodies take
    short_executions = 20

    def start(self) -> None:
        model = LanguageModel.open(publish_tiny(self.folder), device="cpu")
        engine = EngineSpec(max_batch=16, cache_tokens=8192, page_size=16)
        self._open = contextlib.ExitStack()
        limits = Limits(n=4, choices=8, messages=256)
        self._server: Running = self._open.enter_context(running(with_engine(model, engine), limits=limits))
        self._http = self._open.enter_context(self._server.http())

    def stop(self) -> None:
        self._open.close()

    def make(self, rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            route = rng.choice(list(HOSTILE))
            kind = rng.choice(list(HOSTILE[route].values()))
            return route.encode() + b"\n" + kind(rng.choice(_SIZES))
        route, valid = rng.choice(_VALID)
        body = bytearray(json.dumps(damage(_short(valid), rng)).encode())
        for _ in range(rng.choice((0, 0, 0, 1, 3))):
            at = rng.randrange(len(body) + 1)
            body[at : at + rng.choice((0, 1, 5))] = rng.choice(_BYTES)
        return route.encode() + b"\n" + bytes(body)

    def check(self, data: bytes) -> None:
        route, _, body = data.partition(b"\n")
        answer = self._http.post(route.decode(), content=body, headers={"content-type": "application/json"})
        assert answer.status_code < 500, answer.text[:400]
        if answer.status_code >= 400:
            self.refusals[str(answer.status_code)] += 1
            message = answer.json()["error"]["message"]
            assert "; " in message, message
            assert "\n" not in message, message
            assert len(message) < 1000, message[:2000]
        assert self._http.get("/health").json() == {"status": "ok"}


def _short(valid: Any) -> Any:
    """Return a body whose answer is short, so that most of the time goes to reading bodies."""
    if not isinstance(valid, dict) or not {"messages", "prompt", "input"} & valid.keys():
        return valid
    field = "max_output_tokens" if "input" in valid else "max_tokens"
    return {**valid, field: 2}


TARGETS = (RequestBodies,)
