"""Long loads: random clients that leave, ten times what fits, and an end amid many streams."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from fathom.spec.engine import EngineSpec
from tests.serve.serving import Running, Serve, wait_until
from tests.serve.test_disconnect import LONG, process, settled, streams

pytestmark = pytest.mark.slow


async def visit(port: int, rng: random.Random, ended: Counter[str]) -> None:
    """Ask for something at random, and perhaps leave before it is answered."""
    chat = rng.random() < 0.5
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "river " * rng.randint(1, 40)}]}
    if not chat:
        body = {"prompt": "The road " * rng.randint(1, 40)}
    body |= {"max_tokens": rng.randint(1, 60), "stream": rng.random() < 0.6, "n": rng.randint(1, 3)}
    if rng.random() < 0.2:
        body["guided_regex"] = "[a-f]{1,20}"
    content = json.dumps(body).encode()
    path = "/v1/chat/completions" if chat else "/v1/completions"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    try:
        async with asyncio.timeout(rng.random() * 0.5 if rng.random() < 0.4 else 60):
            answer = await reader.read()
        ended[answer[9:12].decode()] += 1
        assert not body["stream"] or answer[9:12] != b"200" or b"[DONE]" in answer
    except TimeoutError:
        ended["left"] += 1
    finally:
        writer.close()


async def visits(port: int, count: int, together: int, seed: int) -> Counter[str]:
    rng, ended, places = random.Random(seed), Counter[str](), asyncio.Semaphore(together)

    async def one(number: int) -> None:
        async with places:
            await visit(port, random.Random(rng.random() + number), ended)

    await asyncio.gather(*(one(number) for number in range(count)))
    return ended


def check_nothing_leaked(server: Running) -> None:
    assert server.idle(60)
    engine = server.service.worker.engine
    assert engine.leaked_pages == 0
    assert engine.stats.running == engine.stats.waiting == 0
    assert server.metric("fathom_http_requests_in_progress") == 0


def test_two_thousand_visits_leave_no_page_behind_and_memory_as_it_was(serve: Serve) -> None:
    with serve() as server:
        asyncio.run(visits(server.port, 300, 24, seed=0))
        check_nothing_leaked(server)
        gc.collect()
        before = psutil.Process().memory_info().rss
        ended = asyncio.run(visits(server.port, 2000, 24, seed=1))
        check_nothing_leaked(server)
        gc.collect()
        assert ended["left"] > 300
        assert ended["200"] > 800
        assert set(ended) <= {"200", "left"}, ended
        assert psutil.Process().memory_info().rss - before < 48 << 20


def test_ten_times_what_fits_is_refused_in_time_and_what_was_taken_is_answered(serve: Serve) -> None:
    spec = EngineSpec(max_batch=8, cache_tokens=2048, page_size=16)
    with serve(spec, max_waiting=8) as server:
        deadline = time.monotonic() + 60
        ended: Counter[str] = Counter()
        longest = 0
        while time.monotonic() < deadline:
            found, threads = post_all(server, 80)
            while any(thread.is_alive() for thread in threads):
                stats = server.service.worker.stats
                longest = max(longest, stats.running + stats.waiting)
                time.sleep(0.02)
            ended += Counter(found)
        assert longest <= 16
        assert set(ended) == {"200", "429"}, ended
        check_nothing_leaked(server)


def post_all(server: Running, count: int) -> tuple[list[str], list[threading.Thread]]:
    found: list[str] = []

    def post() -> None:
        with server.http() as http:
            answer = http.post("/v1/completions", json=LONG | {"max_tokens": 60})
        assert answer.status_code == 200 or int(answer.headers["retry-after"]) >= 1
        found.append(str(answer.status_code))

    threads = [threading.Thread(target=post) for _ in range(count)]
    for thread in threads:
        thread.start()
    return found, threads


def test_fifty_streams_end_whole_or_with_an_error_when_the_server_is_stopped(directory: Path) -> None:
    with process(directory, "--drain-seconds", "3", "--max-batch", "16") as (running, port):
        found, threads = streams(port, 50, LONG)
        assert wait_until(
            lambda: "fathom_http_requests_in_progress 50.0" in httpx2.get(f"http://127.0.0.1:{port}/metrics").text
        )
        time.sleep(1)
        os.kill(running.pid, signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert running.wait(60) == 0
    assert {settled(events) for events in found} <= {"whole", "draining"}
