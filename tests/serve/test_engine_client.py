"""How often streams are notified of the engine's outputs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fathom.engine.request import Output, Request
from fathom.serve.engine_client import EngineClient, OutputQueue


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


@pytest.mark.parametrize(("streams", "notified_at_once"), [(4, True), (5, False)])
def test_many_streams_are_notified_of_several_steps_together(streams: int, notified_at_once: bool) -> None:
    async def run() -> None:
        worker: Any = Stepping()
        client = EngineClient(worker, interval=3600.0)
        client.attach(asyncio.get_running_loop())
        queues = [client.submit([Request(prompt=(1,))]) for _ in range(streams)]

        async def arrived(queue: OutputQueue) -> int:
            try:
                async with asyncio.timeout(0.05):
                    return len(await queue.get())
            except TimeoutError:
                return 0

        async def step(finish_reason: Any = None) -> set[int]:
            worker.step(finish_reason)
            return set(await asyncio.gather(*map(arrived, queues)))

        assert await step() == {1}  # the first always notifies
        assert await step() == ({1} if notified_at_once else {0})
        assert await step() == ({1} if notified_at_once else {0})
        assert await step("stop") == ({1} if notified_at_once else {3})  # and so is the last

    asyncio.run(run())


def test_streams_are_notified_when_the_interval_has_passed() -> None:
    async def run() -> None:
        worker: Any = Stepping()
        client = EngineClient(worker, interval=0.01)
        client.attach(asyncio.get_running_loop())
        queues = [client.submit([Request(prompt=(1,))]) for _ in range(8)]
        for _ in range(3):
            worker.step()
            async with asyncio.timeout(20):
                assert [len(await queue.get()) for queue in queues] == [1] * 8

    asyncio.run(run())
