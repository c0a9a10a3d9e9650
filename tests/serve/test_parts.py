"""Parts of the server that need no server."""

from __future__ import annotations

import asyncio
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fathom.cli.serve import read_keys
from fathom.engine.request import EngineStats, Output, Request
from fathom.errors import DataError, SpecError
from fathom.serve import fetch
from fathom.serve.engine_client import EngineClient, OutputQueue, PreprocessExecutor
from fathom.serve.errors import ApiError
from fathom.serve.metrics import MAX_RETRY_SECONDS, Metrics
from fathom.serve.middleware import loopback_hosts
from fathom.serve.request_body import parsed
from fathom.serve.schemas.chat import ChatCompletionRequest
from fathom.serve.schemas.completions import CompletionRequest
from fathom.serve.settings import Limits, ServeSettings


class Images(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/image")
            self.end_headers()
        elif self.path == "/loop":
            self.send_response(302)
            self.send_header("Location", "/loop")
            self.end_headers()
        elif self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "http://elsewhere.example/image")
            self.end_headers()
        elif self.path == "/image":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x" * 1000)
        else:
            self.send_error(404)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Images) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_an_image_is_never_fetched_from_a_private_network(site: str) -> None:
    for url in (
        site + "/image",
        "http://localhost/image",
        "http://[::1]/image",
        "http://10.1.2.3/a",
        "http://169.254.169.254/a",
    ):
        host = url.split("//")[1].rpartition("/")[0].partition(":")[0] if "[" not in url else "::1"
        with pytest.raises(ApiError, match="private"):
            fetch.fetch_image(url, "url", {host}, max_bytes=4000)


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_public_address", lambda host, port, where: "127.0.0.1")


@pytest.mark.usefixtures("trusting")
def test_an_image_is_fetched_within_limits_and_by_checked_redirections(site: str) -> None:
    hosts = {"127.0.0.1"}
    assert fetch.fetch_image(f"{site}/image", "url", hosts, max_bytes=1000) == b"x" * 1000
    assert fetch.fetch_image(f"{site}/moved", "url", hosts, max_bytes=1000) == b"x" * 1000
    for path, most, words in (
        ("/image", 999, "exceeds 999"),
        ("/none", 999, "status 404"),
        ("/loop", 999, "redirected"),
        ("/away", 999, "not allowed"),
    ):
        with pytest.raises(ApiError, match=words):
            fetch.fetch_image(site + path, "url", hosts, max_bytes=most)
    for url in ("ftp://127.0.0.1/a", "http://u:p@127.0.0.1/a", "http://[/a", "http://other/a"):
        with pytest.raises(ApiError, match=r"address|allowed"):
            fetch.fetch_image(url, "url", hosts, max_bytes=9)


def test_a_host_that_does_not_answer_is_told_as_such() -> None:
    with socket.socket() as unused, pytest.MonkeyPatch.context() as patch:
        unused.bind(("127.0.0.1", 0))
        patch.setattr(fetch, "_public_address", lambda host, port, where: "127.0.0.1")
        with pytest.raises(ApiError, match="cannot be fetched"):
            fetch.fetch_image(f"http://a:{unused.getsockname()[1]}/a", "url", {"a"}, max_bytes=9)


def test_heavy_work_is_bounded_in_number_and_time() -> None:
    free = threading.Event()

    async def run() -> None:
        executor = PreprocessExecutor(threads=2, max_jobs=1, seconds=0.05)
        with pytest.raises(ApiError, match="over") as slow:
            await executor.run(lambda: free.wait(20))
        assert slow.value.status == 400
        with pytest.raises(ApiError, match="prepared") as busy:
            await executor.run(lambda: None)
        assert (busy.value.status, busy.value.retry_after) == (429, 1)
        free.set()
        while executor.pending:
            await asyncio.sleep(0.01)
        assert await executor.run(lambda: 3) == 3
        with pytest.raises(ZeroDivisionError):
            await executor.run(lambda: 1 // 0)
        executor.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("host", "more", "expected"),
    [
        ("127.0.0.1", [], {"localhost", "127.0.0.1", "[::1]"}),
        ("::1", ["a.example"], {"localhost", "127.0.0.1", "[::1]", "a.example"}),
        ("0.0.0.0", [], set()),
        ("0.0.0.0", ["a.example"], {"localhost", "127.0.0.1", "[::1]", "0.0.0.0", "a.example"}),
    ],
)
def test_the_hosts_answered_to_follow_from_where_it_listens(host: str, more: list[str], expected: set[str]) -> None:
    assert set(loopback_hosts(host, more)) == expected


@pytest.mark.parametrize(
    ("model", "body", "param"),
    [
        (CompletionRequest, b'{"prompt": [[1, 2], [3, "a"]]}', "prompt[1][1]"),
        (CompletionRequest, b'{"prompt": 3}', "prompt"),
        (CompletionRequest, b'{"prompt": "a", "logit_bias": {"1": 101}}', "logit_bias.1"),
        (CompletionRequest, b'{"prompt": "a", "stop": ["a", 1]}', "stop[1]"),
        (CompletionRequest, b"{}", "prompt"),
        (
            ChatCompletionRequest,
            b'{"messages": [{"role": "user", "content": [{"type": "audio"}]}]}',
            "messages[0].content[0].type",
        ),
        (ChatCompletionRequest, b'{"messages": [{"content": "a"}]}', "messages[0].role"),
        (
            ChatCompletionRequest,
            b'{"messages": [{"role": "user", "content": "a"}], "tool_choice": "must"}',
            "tool_choice",
        ),
        (
            ChatCompletionRequest,
            b'{"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function", "function": {}}]}',
            "tools[0].function.name",
        ),
    ],
)
def test_a_fault_is_located_in_what_was_sent(model: Any, body: bytes, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        parsed(body, model)
    assert caught.value.param == param
    assert caught.value.message.startswith(f"{param}: ")
    assert caught.value.status == 400


def test_the_advice_when_to_come_again_follows_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    metrics = Metrics(EngineStats)
    assert metrics.retry_after(50) == 1
    for _ in range(10):
        metrics.begin()
        metrics.end()
        now += 2.0
    assert metrics.retry_after(5) == 10
    assert metrics.retry_after(1000) == MAX_RETRY_SECONDS


def test_keys_come_from_a_file_and_the_environment(tmp_path: Any) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nfirst-key-1\n\n second-key \n")
    assert read_keys(path, "third-key-3, first-key-1,") == ("first-key-1", "second-key", "third-key-3")
    assert read_keys(None, "") == ()
    path.write_text("# none\n")
    with pytest.raises(DataError, match="holds no keys"):
        read_keys(path, "")
    with pytest.raises(DataError, match="cannot be read"):
        read_keys(tmp_path / "missing", "")


def test_settings_are_checked_and_keep_keys_to_themselves() -> None:
    assert "secret-key" not in repr(ServeSettings(name="a", api_keys=("secret-key",)))
    for wrong in (
        {"name": " "},
        {"api_keys": ("short",)},
        {"api_keys": ("has a space in it",)},
        {"drain_seconds": -1},
        {"cors_origins": ("page.example",)},
    ):
        with pytest.raises(SpecError):
            ServeSettings(**{"name": "a", **wrong})  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="max_concurrent_requests"):
        Limits(max_concurrent_requests=0)


class Stepping:
    """A worker whose steps a test takes."""

    def __init__(self) -> None:
        self.listeners: list[Any] = []
        self.crossed: Any = None

    def on_step(self, callback: Any) -> None:
        self.crossed = callback

    def submit_all(self, requests: Any, listener: Any) -> list[int]:
        self.listeners.append(listener)
        return [len(self.listeners)]

    def step(self, finish_reason: Any = None) -> None:
        for number, listener in enumerate(self.listeners):
            listener(Output(request_id=number + 1, finish_reason=finish_reason))
        self.crossed()


@pytest.mark.parametrize(("streams", "told_at_once"), [(4, True), (5, False)])
def test_many_streams_are_told_of_several_steps_together(streams: int, told_at_once: bool) -> None:
    async def run() -> None:
        worker: Any = Stepping()
        bridge = EngineClient(worker, interval=3600.0)
        bridge.attach(asyncio.get_running_loop())
        boxes = [bridge.submit([Request(prompt=(1,))]) for _ in range(streams)]

        async def arrived(box: OutputQueue) -> int:
            try:
                async with asyncio.timeout(0.05):
                    return len(await box.take())
            except TimeoutError:
                return 0

        async def step(finish_reason: Any = None) -> set[int]:
            worker.step(finish_reason)
            return set(await asyncio.gather(*map(arrived, boxes)))

        assert await step() == {1}  # the first is always told
        assert await step() == ({1} if told_at_once else {0})
        assert await step() == ({1} if told_at_once else {0})
        assert await step("stop") == ({1} if told_at_once else {3})  # and so is the last

    asyncio.run(run())


def test_streams_are_told_when_the_interval_has_passed() -> None:
    async def run() -> None:
        worker: Any = Stepping()
        bridge = EngineClient(worker, interval=0.01)
        bridge.attach(asyncio.get_running_loop())
        boxes = [bridge.submit([Request(prompt=(1,))]) for _ in range(8)]
        for _ in range(3):
            worker.step()
            async with asyncio.timeout(20):
                assert [len(await box.take()) for box in boxes] == [1] * 8

    asyncio.run(run())
