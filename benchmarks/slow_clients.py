"""Latencies of 20 good clients with and without 1,000 slow ones beside them, round by round in turn.

``fathom serve`` runs as a process of its own, with its default limits and a small model. The slow clients, in another
process, send half a head, a head or a body byte by byte, read a byte a second of many files, or send a request
and then nothing. One whose connection is closed connects again. The good clients are OpenAI's own: half of them stream.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx2
import openai
import psutil

from benchmarks import peers
from fathom.checkpoint.hf import save_hf
from fathom.families import preset
from fathom.model import build
from fathom.tokenizer import train_bpe

PROMPT = "The river finds the road, and the garden keeps the tower. "
GET = b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
KINDS = {
    "half a head": (HEAD + b"X-Slow: ", b""),
    "head byte by byte": (HEAD + b"X-Slow: ", b"a"),
    "body byte by byte": (HEAD + b"Content-Length: 1000\r\n\r\n", b" "),
    "reads byte by byte": (GET % b"/page/app.js" * 400, b""),
    "idle": (GET % b"/health", b""),
}
Latencies = dict[str, list[float]]


def publish(root: Path) -> Path:
    """Write a small model with seeded weights and a tokenizer; return its directory."""
    tokenizer = train_bpe([PROMPT * 8], vocab_size=384)
    tokenizer.save(root / "tokenizer")
    spec = replace(preset("bench-t"), vocab_size=tokenizer.vocab_size)
    save_hf(root / "model", spec, dict(build(spec, seed=0).state_dict()), tokenizer=root / "tokenizer")
    return root / "model"


@contextlib.contextmanager
def server(model: Path, log: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Run ``fathom serve``; yields its port and process."""
    command = [sys.executable, "-m", "fathom", "serve", str(model), "--port", "0", "--device", "cpu"]
    with log.open("w") as output, subprocess.Popen(command, stderr=output) as running:
        try:
            while "serving" not in (text := log.read_text()):
                assert running.poll() is None, text
                time.sleep(0.1)
            yield int(text.partition("127.0.0.1:")[2].partition(" ")[0]), psutil.Process(running.pid)
        finally:
            running.terminate()


@contextlib.contextmanager
def slow_clients(port: int, count: int) -> Iterator[None]:
    """Run the slow clients in a process of their own, once all are connected."""
    command = [sys.executable, "-m", "benchmarks.slow_clients", "--slow", f"{port},{count}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "connected\n"
        try:
            yield
        finally:
            running.kill()


async def be_slow(port: int, count: int) -> None:
    """Hold ``count`` connections, as many of each kind, for ever."""
    connected, names = asyncio.Semaphore(0), [*KINDS]

    async def one(number: int) -> None:
        first = True
        while True:
            with contextlib.suppress(OSError):
                await hold(port, *KINDS[names[number % len(names)]], connected if first else None)
            first = False
            await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            tasks.create_task(one(number))
        for _ in range(count):
            await connected.acquire()
        print("connected", flush=True)


async def hold(port: int, sent: bytes, again: bytes, connected: asyncio.Semaphore | None) -> None:
    """Connect, send, then send and take a byte a second until the server closes the connection."""
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.setblocking(False)
        await loop.sock_connect(connection, ("127.0.0.1", port))
        if connected is not None:
            connected.release()
        await loop.sock_sendall(connection, sent)
        while True:
            await asyncio.sleep(1)
            with contextlib.suppress(BlockingIOError):
                if connection.recv(1) == b"":
                    return
            if again:
                await loop.sock_sendall(connection, again)


def ask(client: openai.OpenAI, stream: bool, tokens: int, found: Latencies) -> None:
    """Send one request and note its latencies."""
    extra = {"ignore_eos": True}
    began = time.perf_counter()
    if stream:
        events = client.completions.create(
            model="model", prompt=PROMPT, max_tokens=tokens, stream=True, extra_body=extra
        )
        next(events)
        found["streamed, first event"].append(time.perf_counter() - began)
        assert sum(1 for _ in events) > 0
        found["streamed, whole"].append(time.perf_counter() - began)
    else:
        answer = client.completions.create(model="model", prompt=PROMPT, max_tokens=tokens, extra_body=extra)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == tokens
        found["whole"].append(time.perf_counter() - began)


def good_clients(port: int, count: int, requests: int, tokens: int) -> Latencies:
    """Run the good clients side by side; return their latencies in seconds. One that fails ends the benchmark."""
    found: Latencies = {"streamed, first event": [], "streamed, whole": [], "whole": []}

    def one(number: int) -> None:
        with openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="unused-key", max_retries=0, timeout=120
        ) as client:
            for _ in range(requests):
                ask(client, number % 2 == 0, tokens, found)

    with ThreadPoolExecutor(count) as threads:
        list(threads.map(one, range(count)))
    return found


def metrics(port: int) -> Counter[str]:
    """Return the server's counts of connections."""
    found: Counter[str] = Counter()
    for line in httpx2.get(f"http://127.0.0.1:{port}/metrics", timeout=120, trust_env=False).text.splitlines():
        if line.startswith(("fathom_connections_open", "fathom_connections_closed_total")):
            name, _, value = line.rpartition(" ")
            found[name.partition('reason="')[2].rstrip('"}') or "open"] = int(float(value))
    return found


def processor_share(process: psutil.Process, seconds: float = 10.0) -> float:
    """Return how much of one core the server takes while no good client asks."""
    before = sum(process.cpu_times()[:2])
    time.sleep(seconds)
    return round((sum(process.cpu_times()[:2]) - before) / seconds, 4)


def measure(a: argparse.Namespace, port: int, process: psutil.Process) -> dict[str, object]:
    def round_of_good_clients() -> Latencies:
        return good_clients(port, a.good, a.requests, a.tokens)

    round_of_good_clients()  # warms both sides
    rounds: dict[str, list[Latencies]] = {"without": [], "with": []}
    resident, opened = {"before": process.memory_info().rss}, []
    idle, share = processor_share(process), []
    for _ in range(a.rounds):
        rounds["without"].append(round_of_good_clients())
        with slow_clients(port, a.slow_clients):
            began = metrics(port)
            while metrics(port)["head_timeout"] == began["head_timeout"]:
                time.sleep(0.5)  # until the first of the slow clients are closed and come again
            share.append(processor_share(process))
            rounds["with"].append(round_of_good_clients())
            opened.append(metrics(port)["open"])
        while metrics(port)["open"] > a.good + 1:
            time.sleep(0.2)
    resident["after"] = process.memory_info().rss
    return {
        "slow_clients": a.slow_clients,
        "good_clients": a.good,
        "seconds": {name: summary(found) for name, found in rounds.items()},
        "cores_for_slow_clients_alone": {"idle": idle, "with": share},
        "open_beside_slow_clients": opened,
        "closed": dict(metrics(port)),
        "resident_mib": {name: round(size / 2**20, 1) for name, size in resident.items()},
        "rounds": {name: [summary([one]) for one in found] for name, found in rounds.items()},
    }


def summary(rounds: list[Latencies]) -> dict[str, dict[str, float]]:
    """Return the median and the maximum of each latency."""
    return {
        name: {
            "median": round(statistics.median(seconds), 4),
            "maximum": round(max(seconds), 4),
        }
        for name in rounds[0]
        for seconds in [[each for found in rounds for each in found[name]]]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow-clients", type=int, default=1000)
    parser.add_argument("--good", type=int, default=20)
    parser.add_argument("--requests", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    parser.add_argument("--slow", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.slow:
        asyncio.run(be_slow(*map(int, a.slow.split(","))))
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        server(publish(Path(folder)), Path(folder) / "log") as (port, process),
    ):
        result = measure(a, port, process)
    peers.write(f"slow-clients-{a.slow_clients}", result, a.out)


if __name__ == "__main__":
    main()
