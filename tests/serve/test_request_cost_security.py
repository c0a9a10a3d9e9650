"""No body takes much more memory than its size, and none keeps other requests waiting.

The server runs in a process of its own; its peak of resident memory is read where the system tells it (Linux).
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests.serve.request_bodies import HOSTILE
from tests.serve.test_disconnect import process
from tests.slow_cases import fast

RATIO = 20
SLACK = 64 << 20
"""Bytes that any request may take, however small: buffers, arenas of the allocator, a step of the engine."""
MOST_SECONDS = 0.1
BUSY_FACTOR = 10
"""On a busy machine an answer may take as many times as long as it does where nothing else is asked."""
ATTEMPTS = 3
SAMPLED = 6
CASES = [(route, kind) for route, kinds in HOSTILE.items() for kind in kinds]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a request took: its status, bytes of memory at its peak, and the longest wait for /health, in seconds."""

    status: int
    nbytes: int
    wait: float


@dataclass(frozen=True, slots=True)
class Apart:
    """A server in a process of its own."""

    url: str
    pid: int

    def cost(self, route: str, body: bytes) -> Cost:
        """Send a body while /health is asked again and again."""
        before = self._memory("VmRSS")
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # the peak is counted anew
        with self._health() as waits, httpx2.Client(base_url=self.url, timeout=120, trust_env=False) as http:
            answer = http.post(route, content=body, headers={"content-type": "application/json"})
        return Cost(answer.status_code, self._memory("VmHWM") - before, max(waits))

    def idle_wait(self) -> float:
        """Return how long /health takes where nothing else is asked, the longest of many."""
        with self._health() as waits:
            time.sleep(0.5)
        return max(waits)

    @contextlib.contextmanager
    def _health(self) -> Iterator[list[float]]:
        waits, over, begun = [0.0], threading.Event(), threading.Event()

        def ask() -> None:
            with httpx2.Client(base_url=self.url, timeout=120, trust_env=False) as http:
                while not over.is_set():
                    began = time.monotonic()
                    assert http.get("/health").status_code == 200
                    if begun.is_set():
                        waits.append(time.monotonic() - began)
                    begun.set()
                    over.wait(0.005)

        thread = threading.Thread(target=ask)
        thread.start()
        assert begun.wait(60)
        try:
            yield waits
        finally:
            over.set()
            thread.join()

    def _memory(self, name: str) -> int:
        """Return a line of the process's status in bytes; 0 where the system has none."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith(f"{name}:"):
                    return int(line.split()[1]) << 10
        return 0


@pytest.fixture(scope="module")
def apart(directory: Path) -> Iterator[Apart]:
    """Return a server in a process of its own, warm."""
    with process(directory, "--served-name", "tiny") as (running, port):
        url = f"http://127.0.0.1:{port}"
        with httpx2.Client(base_url=url, timeout=60, trust_env=False) as http:
            answer = http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}]})
            assert answer.status_code == 200, answer.text
        yield Apart(url, running.pid)


def check(apart: Apart, route: str, kind: str, size: int) -> None:
    """Check a body's cost; on a busy machine it is measured again."""
    body = HOSTILE[route][kind](size)
    problems: list[str] = []
    for _ in range(ATTEMPTS):
        cost = apart.cost(route, body)
        where = f"{route}, {kind}, {len(body)} bytes"
        assert cost.status < 500, where
        most = RATIO * len(body) + SLACK
        if cost.nbytes > most:
            problems.append(f"{where}: took {cost.nbytes} bytes of memory, more than {most}")
        elif cost.wait > max(MOST_SECONDS, BUSY_FACTOR * apart.idle_wait()):
            problems.append(f"{where}: /health took {cost.wait:.3f} s")
        else:
            return
    pytest.fail("\n".join(problems))


@pytest.mark.parametrize("route", fast(list(HOSTILE), ("/v1/chat/completions", "/tokenize")))
def test_hostile_bodies_take_little_memory_and_keep_nobody_waiting(apart: Apart, route: str) -> None:
    """Some kinds of each route, at sizes drawn for them; the slow test has all of both."""
    rng = random.Random(route)
    kinds = list(HOSTILE[route])
    for kind in [*kinds[:2], *rng.sample(kinds[2:], min(SAMPLED, len(kinds) - 2))]:
        check(apart, route, kind, rng.choice((20_000, 100_000, 400_000, 1 << 20)))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1 << 10, 32_000, 1 << 18, 700_000, 4 << 20, 32 << 20])
@pytest.mark.parametrize(("route", "kind"), CASES)
def test_hostile_bodies_of_any_size(apart: Apart, route: str, kind: str, size: int) -> None:
    check(apart, route, kind, size)
