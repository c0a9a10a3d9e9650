"""The engine's thread to the event loop: outputs of a step are delivered to their requests' queues in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fathom.engine.request import Output, Request
from fathom.engine.worker import EngineWorker
from fathom.serve.errors import ClientDisconnected

_MAX_STREAMS_UNBATCHED = 4
"""As many streams are told of every step."""


class OutputQueue:
    """What the engine drew for one HTTP request, in order; read by one coroutine."""

    def __init__(self, worker: EngineWorker) -> None:
        self.request_ids: list[int] = []
        self._worker = worker
        self._outputs: list[Output] = []
        self._arrived = asyncio.Event()
        self._left = False
        self._fresh = True

    async def take(self) -> list[Output]:
        """Wait until there is something, and return all there is; ``ClientDisconnected`` once nobody reads on."""
        await self._arrived.wait()
        self._arrived.clear()
        if self._left:
            raise ClientDisconnected
        outputs, self._outputs = self._outputs, []
        return outputs

    def put(self, output: Output) -> bool:
        """Add an output, and return whether it should be looked at now: it is the first, or the last of a request."""
        self._outputs.append(output)
        first, self._fresh = self._fresh, False
        return first or output.finish_reason is not None

    def wake(self) -> None:
        """Have what arrived be looked at."""
        if self._outputs:
            self._arrived.set()

    def leave(self) -> None:
        """Note that the client left."""
        self._left = True
        self._arrived.set()

    def cancel(self, request_ids: Sequence[int] | None = None) -> None:
        """End some of the requests, or all; those that ended by themselves stay as they are."""
        for request_id in self.request_ids if request_ids is None else request_ids:
            self._worker.cancel(request_id)


class EngineClient:
    """Submits requests and hands each step's outputs to the event loop in one call.

    Where steps follow fast and streams are many, each stream is told of several steps at once, ``interval`` seconds
    apart: writing to a socket lets the engine's thread and the loop's take turns, and every turn costs both.
    """

    def __init__(self, worker: EngineWorker, *, interval: float) -> None:
        self.worker = worker
        self._interval = interval
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending_outputs: list[tuple[OutputQueue, Output]] = []
        self._queues_to_notify: dict[OutputQueue, None] = {}
        self._told = 0.0
        self._timer: asyncio.TimerHandle | None = None
        worker.on_step(self._on_step)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Name the loop that outputs go to."""
        self._loop = loop

    def submit(self, requests: Sequence[Request]) -> OutputQueue:
        """Hand requests to the engine, all or none.

        Raises:
            QueueFull, Draining, ContextError, SpecError: as ``EngineWorker.submit_all`` does.
        """
        output_queue = OutputQueue(self.worker)
        crossing = self._pending_outputs
        output_queue.request_ids = self.worker.submit_all(
            requests, lambda output: crossing.append((output_queue, output))
        )
        return output_queue

    def _on_step(self) -> None:
        """Runs on the engine's thread after a step's listeners, which have filled ``_pending_outputs``."""
        if not self._pending_outputs or self._loop is None:
            return
        outputs = self._pending_outputs[:]
        del self._pending_outputs[: len(outputs)]
        try:
            self._loop.call_soon_threadsafe(self._deliver, self._loop, outputs)
        except RuntimeError:  # the loop has closed: nobody is left to read
            return

    def _deliver(self, loop: asyncio.AbstractEventLoop, outputs: Sequence[tuple[OutputQueue, Output]]) -> None:
        for output_queue, output in outputs:
            if output_queue.put(output):
                output_queue.wake()
            self._queues_to_notify[output_queue] = None
        wait = self._told + self._interval - loop.time()
        if len(self._queues_to_notify) <= _MAX_STREAMS_UNBATCHED or wait <= 0:
            self._tell(loop)
        elif self._timer is None:
            self._timer = loop.call_later(wait, self._tell, loop)

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._told = loop.time()
        for output_queue in self._queues_to_notify:
            output_queue.wake()
        self._queues_to_notify.clear()
