"""A thread that steps an engine for any number of others."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from fathom.engine.answer import one_line
from fathom.engine.engine import Engine
from fathom.engine.request import EngineStats, Output, Request
from fathom.engine.state import RequestState
from fathom.errors import Draining, EngineError, QueueFull

OutputCallback = Callable[[Output], None]
EndCallback = Callable[[BaseException | None], None]

_FAILURES_IN_A_ROW = 3


class EngineWorker:
    """Owns an engine; every method may be called from any thread.

    A request's listener is called with each of its outputs in order, the last of which has a ``finish_reason``,
    whatever happens. Listeners and step callbacks run on the worker's thread and must not block; one that raises has
    its request cancelled. ``last_error`` is what a step or a listener last raised, in one line.

    As many requests as one batch holds, and ``max_waiting`` more, may be under way at once, however they arrive.

    A step that raises ends the requests under way with an error, and the worker continues. Where a request cannot be
    ended either, the engine's state is not known any more: every request gets an error, the thread ends, ``healthy`` is
    False, and new requests are refused. ``clock`` counts seconds.
    """

    def __init__(self, engine: Engine, *, max_waiting: int = 256, clock: Callable[[], float] = time.monotonic) -> None:
        self.engine = engine
        self.max_waiting = max_waiting
        self.last_error: str | None = None
        self._clock = clock
        self._progress_at: float | None = None  # None while idle
        self._fatal: str | None = None
        self._condition = threading.Condition()
        self._incoming: deque[tuple[RequestState, OutputCallback]] = deque()
        self._cancelled: deque[int] = deque()
        self._jobs: deque[tuple[Iterator[object], EndCallback]] = deque()
        self._listeners: dict[int, OutputCallback] = {}  # changed by the worker's thread only
        self._callbacks: list[Callable[[], None]] = []
        self._stats = engine.stats
        self._failures = 0
        self._draining = False
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._serve, name="fathom-engine", daemon=True)

    @property
    def healthy(self) -> bool:
        """Whether the thread lives and the engine does not fail step after step."""
        return self._thread.is_alive() and self._failures < _FAILURES_IN_A_ROW

    @property
    def stalled_seconds(self) -> float:
        """Seconds since requests last made progress: since the last step that did not fail, or since work arrived.

        0.0 while there is no request. It grows while a step takes long, steps fail, or the thread has ended.
        """
        since = self._progress_at
        return 0.0 if since is None else max(self._clock() - since, 0.0)

    @property
    def stats(self) -> EngineStats:
        """The engine after its latest step."""
        return self._stats

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, *, drain_seconds: float = 0.0) -> None:
        """Refuse new requests, give those under way ``drain_seconds`` to end, cancel the rest, and end the thread."""
        with self._condition:
            self._draining = True
            self._deadline = time.monotonic() + drain_seconds
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        elif self._fatal is None:
            self._cancel_all()

    def submit(self, request: Request, listener: OutputCallback) -> int:
        """Check a request, add it to the queue, and return its id.

        Raises:
            QueueFull: as many requests wait as may.
            Draining: the worker is being closed.
            EngineError: the worker's thread ended because of a fault.
            ContextError, SpecError: as ``Engine.submit``.
        """
        return self.submit_all([request], listener)[0]

    def submit_all(self, requests: Sequence[Request], listener: OutputCallback) -> list[int]:
        """Submit all of these requests or, where one is refused, none; raises as ``submit``."""
        self._check_queue_limit(len(requests))
        states = [self.engine.prepare(request) for request in requests]
        with self._condition:
            self._check_queue_limit(len(states))
            if self._progress_at is None:
                self._progress_at = self._clock()
            self._incoming.extend((state, listener) for state in states)
            self._condition.notify_all()
        return [state.id for state in states]

    def cancel(self, request_id: int) -> None:
        """End a request before the next step; its listener gets a last output. Unknown ids are ignored."""
        with self._condition:
            self._cancelled.append(request_id)
            self._condition.notify_all()

    def interleave(self, job: Iterator[object], ended: EndCallback) -> None:
        """Run other work with the model on the worker's thread: an item of ``job`` before each step, jobs in turn.

        ``ended`` is called on that thread once ``job`` is exhausted, with None, or with what it raised; with
        ``Draining`` where the worker was closed first.

        Raises:
            Draining, EngineError: as ``submit``.
        """
        with self._condition:
            self._check_queue_limit(0)
            self._jobs.append((job, ended))
            if self._progress_at is None:
                self._progress_at = self._clock()
            self._condition.notify_all()

    def on_step(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` after each step's listeners, so that a step's outputs can be handed over at once."""
        with self._condition:
            self._callbacks = [*self._callbacks, callback]

    def _check_queue_limit(self, more: int) -> None:
        if self._fatal is not None:
            raise EngineError(f"engine: its thread ended after {self._fatal}; restart the process")
        if self._draining:
            raise Draining
        waiting = len(self._incoming) + len(self._listeners) - self.engine.spec.max_batch
        if waiting + more > self.max_waiting:
            raise QueueFull(max(waiting, 0), self.max_waiting)

    def _serve(self) -> None:
        try:
            while self._wait_for_work():
                self._advance_job()
                outputs = self._step()
                self._stats = self.engine.stats
                self._deliver(outputs)
            self._cancel_all()
        except BaseException as error:  # the thread ends: whatever it was, every listener must be called
            self._end_without_engine(error)

    def _wait_for_work(self) -> bool:
        """Wait for requests or cancellations and queue them in the engine; False when the thread is to end."""
        with self._condition:
            self._condition.wait_for(
                lambda: self._incoming or self._cancelled or self._jobs or self.engine.has_work or self._draining
            )
            self._enqueue_incoming()
            self._stats = self.engine.stats
            cancelled = [self._cancelled.popleft() for _ in range(len(self._cancelled))]
            busy = self.engine.has_work or bool(self._jobs)
            late = self._deadline is not None and (time.monotonic() >= self._deadline or not busy)
        ended = [self.engine.end(request_id, "cancelled") for request_id in cancelled]
        self._deliver([output for output in ended if output is not None])
        return not late

    def _step(self) -> list[Output]:
        """Step the engine; whatever it raises ends all its requests, since their state is not known any more."""
        try:
            outputs = self.engine.step()
            failure = self.engine.last_error
        except Exception as error:
            failure = error
            ended = [self.engine.end(request_id, "error", one_line(error)) for request_id in tuple(self._listeners)]
            outputs = [output for output in ended if output is not None]
        self._failures = 0 if failure is None else self._failures + 1
        if failure is not None:
            self.last_error = one_line(failure)
        with self._condition:
            if not (self.engine.has_work or self._incoming or self._jobs):
                self._progress_at = None
            elif failure is None:
                self._progress_at = self._clock()
        return outputs

    def _advance_job(self) -> None:
        """Run one item of the job that is next."""
        if not self._jobs:
            return
        job, ended = self._jobs.popleft()
        error: BaseException | None = None
        try:
            next(job)
        except StopIteration:
            pass
        except Exception as raised:
            error = raised
        else:
            with self._condition:
                self._jobs.append((job, ended))
            return
        with suppress(Exception):
            ended(error)

    def _end_jobs(self, error: BaseException) -> None:
        with self._condition:
            jobs = [self._jobs.popleft() for _ in range(len(self._jobs))]
        for _, ended in jobs:
            with suppress(Exception):
                ended(error)

    def _enqueue_incoming(self) -> None:
        while self._incoming:
            state, listener = self._incoming.popleft()
            self._listeners[state.id] = listener
            self.engine.enqueue(state)

    def _cancel_all(self) -> None:
        self._enqueue_incoming()
        ended = [self.engine.end(request_id, "cancelled") for request_id in tuple(self._listeners)]
        self._deliver([output for output in ended if output is not None])
        self._end_jobs(Draining())
        self._stats = self.engine.stats
        self._progress_at = None

    def _end_without_engine(self, error: BaseException) -> None:
        """End every request with an error, without asking the engine, whose state is not known any more."""
        message = one_line(error)
        with self._condition:
            self._fatal = self.last_error = message
            listeners = {**self._listeners, **{state.id: listener for state, listener in self._incoming}}
            self._listeners.clear()
            self._incoming.clear()
        self._end_jobs(EngineError(f"engine: its thread ended after {message}; restart the process"))
        outputs = [Output(request_id=request_id, finish_reason="error", error=message) for request_id in listeners]
        for output in outputs:
            with suppress(Exception):
                listeners[output.request_id](output)
        for callback in self._callbacks if outputs else ():
            with suppress(Exception):
                callback()

    def _deliver(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            listener = self._listeners.get(output.request_id)
            if listener is None:
                continue
            if output.finish_reason is not None:
                del self._listeners[output.request_id]
            try:
                listener(output)
            except Exception as error:
                self.last_error = one_line(error)
                self._listeners.pop(output.request_id, None)
                self.engine.cancel(output.request_id)
        if not outputs:
            return
        for callback in self._callbacks:
            try:
                callback()
            except Exception as error:
                self.last_error = one_line(error)
