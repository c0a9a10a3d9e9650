"""A server of its own process with few descriptors beside hundreds of slow clients."""

from __future__ import annotations

import contextlib
import importlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.serve.serving import wait_until
from tests.serve.test_disconnect import process
from tests.slow_cases import fast

HALF_HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
HALF_BODY = HALF_HEAD.replace(b"X-Slow: ", b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")


@contextlib.contextmanager
def slow_clients(port: int, kinds: dict[bytes, int]) -> Iterator[list[socket.socket]]:
    """Open connections that sent one of the kinds and nothing more."""
    with contextlib.ExitStack() as stack:
        found = []
        for sent, count in kinds.items():
            for _ in range(count):
                one = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
                with contextlib.suppress(ConnectionError):
                    one.sendall(sent)
                found.append(one)
        yield found


few_files = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on open files")


KINDS = ({HALF_HEAD: 400}, {HALF_BODY: 300, b"": 100}, {b"": 400})


@few_files
@pytest.mark.parametrize("kinds", fast(KINDS, ("heads",), ids=["heads", "bodies", "silent"]))
def test_400_slow_clients_leave_descriptors_for_others(directory: Path, kinds: dict[bytes, int]) -> None:
    with (
        process(directory, files=256) as (running, port),
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http,
        slow_clients(port, kinds),
    ):
        for _ in range(3):
            assert http.get("/health").json() == {"status": "ok"}
            answer = http.post("/v1/completions", json={"prompt": "The river", "max_tokens": 8})
            assert answer.status_code == 200, answer.text
            streamed = http.post("/v1/completions", json={"prompt": "The river", "max_tokens": 8, "stream": True})
            assert streamed.text.endswith("data: [DONE]\n\n")
        lines = http.get("/metrics").text.splitlines()
        evicted = next(line for line in lines if line.startswith('fathom_connections_closed_total{reason="evicted"}'))
        assert float(evicted.split()[-1]) > 100
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0


@pytest.mark.slow
def test_slow_clients_are_closed_within_the_time_given_on_the_command_line(directory: Path) -> None:
    options = ("--head-timeout-seconds", "1", "--body-timeout-seconds", "1")
    with process(directory, *options) as (_, port), slow_clients(port, {HALF_HEAD: 5, HALF_BODY: 5, b"": 5}) as slow:
        began = time.monotonic()
        answers = [one.recv(12) for one in slow]
        assert answers == [b"HTTP/1.1 408"] * 10 + [b""] * 5
        assert time.monotonic() - began < 15


@few_files
@pytest.mark.slow
def test_more_connections_than_files_are_refused_at_the_start(directory: Path) -> None:
    arguments = [str(directory), "--port", "0", "--device", "cpu", "--connections", "500"]
    command = ["sh", "-c", 'ulimit -n 256 && exec "$@"', "sh", sys.executable, "-m", "fathom", "serve", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert re.search(r"connections: 500 are more .* or give \d+ at most", ended.stderr)


@pytest.mark.slow
def test_a_server_with_slow_clients_is_drained_as_any_other(directory: Path) -> None:
    with process(directory, "--drain-seconds", "5") as (running, port), slow_clients(port, {HALF_HEAD: 20, b"": 20}):
        url = f"http://127.0.0.1:{port}/metrics"
        assert wait_until(lambda: "fathom_connections_open 41.0" in httpx2.get(url, trust_env=False).text)
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of another process is set by prlimit, which Linux has")
def test_a_server_without_descriptors_closes_idle_connections_and_does_not_spin(directory: Path) -> None:
    resource = importlib.import_module("resource")
    with process(directory) as (running, port), slow_clients(port, {HALF_HEAD: 30}) as slow:
        url = f"http://127.0.0.1:{port}"
        assert wait_until(lambda: "connections_open 31.0" in httpx2.get(f"{url}/metrics", trust_env=False).text)
        server = psutil.Process(running.pid)
        _, hard = resource.prlimit(running.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (server.num_fds(), hard))
        with slow_clients(port, {HALF_HEAD: 3}):
            before = sum(server.cpu_times()[:2])
            assert httpx2.get(f"{url}/health", timeout=60, trust_env=False).status_code == 200
            assert slow[0].recv(1) == b""
            time.sleep(1)
            assert sum(server.cpu_times()[:2]) - before < 1.5
