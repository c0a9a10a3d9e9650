"""The engine's thread to the event loop: outputs of a step are delivered to their requests' queues in one call."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

from fathom.engine.request import Output, Request
from fathom.engine.worker import EngineWorker
from fathom.serve.errors import ClientDisconnected

T = TypeVar("T")
_MAX_STREAMS_UNBATCHED = 4
"""Up to this many streams are notified of every step."""


class OutputQueue:
    """The engine's outputs for one HTTP request in order; read by one coroutine."""

    def __init__(self, worker: EngineWorker) -> None:
        self.request_ids: list[int] = []
        self._worker = worker
        self._outputs: list[Output] = []
        self._has_output = asyncio.Event()
        self._disconnected = False
        self._is_first = True

    async def get(self) -> list[Output]:
        """Wait for outputs and return all of them; ``ClientDisconnected`` once the client has left."""
        await self._has_output.wait()
        self._has_output.clear()
        if self._disconnected:
            raise ClientDisconnected
        outputs, self._outputs = self._outputs, []
        return outputs

    def put(self, output: Output) -> bool:
        """Add an output; return whether to notify the reader at once: for the first, and for the last of a request."""
        self._outputs.append(output)
        first, self._is_first = self._is_first, False
        return first or output.finish_reason is not None

    def notify(self) -> None:
        """Wake the reader if there are outputs."""
        if self._outputs:
            self._has_output.set()

    def disconnect(self) -> None:
        """Mark the client as disconnected, and wake the reader."""
        self._disconnected = True
        self._has_output.set()

    def cancel(self, request_ids: Sequence[int] | None = None) -> None:
        """Cancel some of the requests, or all; finished ones are not affected."""
        for request_id in self.request_ids if request_ids is None else request_ids:
            self._worker.cancel(request_id)


class EngineClient:
    """Submits requests and hands each step's outputs to the event loop in one call.

    With more than a few streams, each is notified every ``interval`` seconds at most and then gets the outputs of
    several steps: at every socket write the engine's thread and the event loop's compete for the interpreter lock.
    """

    def __init__(self, worker: EngineWorker, *, interval: float) -> None:
        self.worker = worker
        self._interval = interval
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending_outputs: list[tuple[OutputQueue, Output]] = []
        self._queues_to_notify: dict[OutputQueue, None] = {}
        self._last_notify = 0.0
        self._timer: asyncio.TimerHandle | None = None
        worker.on_step(self._on_step)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set the event loop that outputs are delivered to."""
        self._loop = loop

    def submit(self, requests: Sequence[Request]) -> OutputQueue:
        """Submit requests to the engine, all or none.

        Raises:
            QueueFull, Draining, ContextError, SpecError: as ``EngineWorker.submit_all`` does.
        """
        output_queue = OutputQueue(self.worker)
        pending = self._pending_outputs
        output_queue.request_ids = self.worker.submit_all(
            requests, lambda output: pending.append((output_queue, output))
        )
        return output_queue

    async def interleave(self, steps: Generator[object, None, T]) -> T:
        """Run ``steps`` on the engine's thread between its steps and return what they return.

        A caller that is cancelled ends them before their next.

        Raises:
            Draining, EngineError: the worker is being closed, or its thread ended; and what ``steps`` raise.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        left = threading.Event()
        result: list[T] = []

        def job() -> Iterator[None]:
            while not left.is_set():
                try:
                    next(steps)
                except StopIteration as end:
                    result.append(end.value)
                    return
                yield

        def settle(error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            elif result:
                future.set_result(result[0])

        def ended(error: BaseException | None) -> None:
            with suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(settle, error)

        self.worker.interleave(job(), ended)
        try:
            return await future
        finally:
            left.set()

    def _on_step(self) -> None:
        """Runs on the engine's thread after a step's listeners, which have filled ``_pending_outputs``."""
        if not self._pending_outputs or self._loop is None:
            return
        outputs = self._pending_outputs[:]
        del self._pending_outputs[: len(outputs)]
        try:
            self._loop.call_soon_threadsafe(self._deliver, self._loop, outputs)
        except RuntimeError:  # the loop has closed
            return

    def _deliver(self, loop: asyncio.AbstractEventLoop, outputs: Sequence[tuple[OutputQueue, Output]]) -> None:
        for output_queue, output in outputs:
            if output_queue.put(output):
                output_queue.notify()
            self._queues_to_notify[output_queue] = None
        wait = self._last_notify + self._interval - loop.time()
        if len(self._queues_to_notify) <= _MAX_STREAMS_UNBATCHED or wait <= 0:
            self._notify_all(loop)
        elif self._timer is None:
            self._timer = loop.call_later(wait, self._notify_all, loop)

    def _notify_all(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._last_notify = loop.time()
        for output_queue in self._queues_to_notify:
            output_queue.notify()
        self._queues_to_notify.clear()
