"""Tokens per second of many streams over HTTP, against the same engine asked without HTTP.

The server runs in this process as ``fathom serve`` does: the engine in its thread, HTTP beside it. The clients run in a
process of their own and read events from plain sockets. Rounds alternate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from benchmarks import peers
from fathom.engine.request import Output, Request
from fathom.engine.worker import EngineWorker
from fathom.inference.language_model import LanguageModel
from fathom.serve.app import create_app
from fathom.serve.model_pool import ModelPool
from fathom.serve.run import Server, listen
from fathom.serve.settings import ServeSettings
from fathom.spec import EngineSpec, SamplingParams

PROMPT = "The river finds the road, and the garden keeps"


def through_engine(worker: EngineWorker, prompt: tuple[int, ...], streams: int, tokens: int) -> float:
    """Return tokens per second of ``streams`` requests handed to the engine."""
    done, drawn = threading.Semaphore(0), [0]

    def listen_to(output: Output) -> None:
        drawn[0] += len(output.tokens)
        if output.finish_reason is not None:
            done.release()

    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    began = time.perf_counter()
    worker.submit_all([Request(prompt=prompt, params=params) for _ in range(streams)], listen_to)
    for _ in range(streams):
        done.acquire()
    return drawn[0] / (time.perf_counter() - began)


def through_http(port: int, streams: int, tokens: int) -> float:
    """Return tokens per second of ``streams`` clients, as their process measured it."""
    command = [sys.executable, "-m", "benchmarks.serve_http", "--client", f"{port},{streams},{tokens}"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


async def clients(port: int, streams: int, tokens: int) -> float:
    body = {"prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    content = json.dumps(body | {"stream_options": {"include_usage": True}}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"

    async def one() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        tail = b""
        while chunk := await reader.read(65_536):
            tail = (tail + chunk)[-4096:]
        writer.close()
        assert b"[DONE]" in tail, tail
        return int(tail.rpartition(b'"completion_tokens": ')[2].partition(b",")[0])

    began = time.perf_counter()
    drawn = await asyncio.gather(*(one() for _ in range(streams)))
    return sum(drawn) / (time.perf_counter() - began)


def summary(model: str, streams: int, rounds: dict[str, list[float]]) -> dict[str, object]:
    """Medians in tokens per second, and the median share of the engine's own rate that goes through HTTP."""
    shares = [http / engine for engine, http in zip(rounds["engine"], rounds["http"], strict=True)]
    return {
        "model": model,
        "streams": streams,
        "per_second": {name: round(statistics.median(rates), 2) for name, rates in rounds.items()},
        "share": round(statistics.median(shares), 4),
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    parser.add_argument("--client", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.client:
        print(asyncio.run(clients(*map(int, asked.client.split(",")))))
        return
    spec = EngineSpec(max_batch=asked.streams, prefix_cache=False)
    model = LanguageModel.open(asked.model, device="cpu", engine=spec)
    models = ModelPool.of("model", model, ServeSettings())
    worker = models.workers()["model"]
    server = Server(create_app(models))
    bound = listen("127.0.0.1", 0)
    thread = threading.Thread(target=lambda: server.run(sockets=[bound]))
    thread.start()
    prompt = (*model.tokenizer.prefix_ids, *model.tokenizer.encode(PROMPT))
    port = bound.getsockname()[1]
    through_engine(worker, prompt, asked.streams, 8)
    found: dict[str, list[float]] = {"engine": [], "http": []}
    for _ in range(asked.rounds):
        found["engine"].append(through_engine(worker, prompt, asked.streams, asked.tokens))
        found["http"].append(through_http(port, asked.streams, asked.tokens))
    server.should_exit = True
    thread.join()
    name = asked.model.name
    peers.write(f"serve-http-{name}-{asked.streams}-streams", summary(name, asked.streams, found), asked.out)


if __name__ == "__main__":
    main()
