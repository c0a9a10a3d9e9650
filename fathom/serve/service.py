"""One loaded model and what its requests need: engine client, preprocessing threads, limits and metrics."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from fathom.engine.request import Request
from fathom.engine.worker import EngineWorker
from fathom.errors import FathomError
from fathom.serve.admission import AdmissionControl, RequestSlot
from fathom.serve.engine_client import EngineClient
from fathom.serve.errors import as_api_error, draining
from fathom.serve.executor import PreprocessExecutor
from fathom.serve.http.notices import notices_of
from fathom.serve.key_usage import KeyRing, usage_of
from fathom.serve.lifecycle import Lifecycle
from fathom.serve.metrics import Metrics
from fathom.serve.owner import owner_of
from fathom.serve.request_context import RequestContext
from fathom.serve.response.answer import Choice
from fathom.serve.response.encoder import ResponseEncoder
from fathom.serve.response.streams import EventStream, ResponseState, collect, run_until_disconnect
from fathom.serve.response.token_format import TokenFormatter
from fathom.serve.settings import ServeSettings

if TYPE_CHECKING:
    from fathom.inference.language_model import LanguageModel

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationJob:
    """A preprocessed request: what the engine runs, the builder of each choice, and how the response is written."""

    requests: Sequence[Request]
    choices: Sequence[Choice]
    per_prompt: int
    encoder: ResponseEncoder


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerContext:
    """What all models of a server share."""

    settings: ServeSettings
    executor: PreprocessExecutor
    lifecycle: Lifecycle
    metrics: Metrics
    admission: AdmissionControl
    keys: KeyRing


class Service:
    """One loaded model; ``name`` is what responses call it, and ``adapter`` the adapter that its requests run with."""

    adapter: str | None = None

    def __init__(self, name: str, model: LanguageModel, worker: EngineWorker, context: ServerContext) -> None:
        self.name, self.model, self.worker = name, model, worker
        self.settings, self.executor, self.lifecycle = context.settings, context.executor, context.lifecycle
        self.metrics, self.admission, self.keys = context.metrics, context.admission, context.keys
        self.latency = context.metrics.latency(name)
        self.engine_client = EngineClient(worker, interval=context.settings.stream_interval_seconds)
        self.token_formatter = TokenFormatter(model.tokenizer)

    @property
    def max_model_len(self) -> int:
        """Tokens of a prompt with its completion at most: the model's context, or what the cache holds if less."""
        context, pool = self.model.spec.max_position_embeddings, self.model.engine.pool
        if self.model.model.window is not None:
            return context
        return min(context, pool.num_pages * pool.page_size)

    def with_adapter(self, name: str) -> Service:
        """Return the service of an adapter over the same engine."""
        adapted = copy.copy(self)
        adapted.name = adapted.adapter = name
        return adapted

    async def respond(
        self,
        http: HttpRequest,
        preprocess: Callable[[], GenerationJob],
        *,
        stream: bool,
        began: float,
    ) -> Response:
        """Run ``preprocess`` in a thread, submit its job, and return the response as JSON or as an event stream.

        The request counts as in progress from here on. Its slot is released and its work in the engine cancelled at
        the end of the HTTP exchange at the latest: the client may leave at any point.

        Raises:
            ApiError: the server is draining, too much is in progress, or what ``preprocess`` or the engine refuses.
            ClientDisconnected: the client left before a response began.
        """
        slot = self.admit(http)
        cleanup: ExitStack = http.state.cleanup
        job = await run_until_disconnect(self.run(preprocess), http.receive)
        self.charge_prompt(http, sum(len(request.prompt) for request in job.requests[:: job.per_prompt]))
        output_queue = self.with_api_errors(lambda: self.engine_client.submit(job.requests))
        state = ResponseState(
            job.choices,
            output_queue,
            job.encoder,
            self.latency,
            self.lifecycle,
            slot=slot,
            began=began,
            per_prompt=job.per_prompt,
        )
        cleanup.callback(self._account, http, state)
        if stream:
            return EventStream(state)
        return await collect(state, http.receive)

    def admit(self, http: HttpRequest) -> RequestSlot:
        """Count a request as in progress until its slot is released, at the latest at the end of the HTTP exchange.

        Raises:
            ApiError: the server is draining, too much is in progress, or the key has used one of its limits.
        """
        if self.lifecycle.draining:
            raise draining(self.retry_after())
        slot = self.admission.acquire()
        cleanup: ExitStack = http.state.cleanup
        cleanup.callback(slot.release)
        usage = usage_of(http)
        if usage is not None:
            notices_of(http).key = usage
            usage.begin(self.retry_after)
            cleanup.callback(usage.end)
        return slot

    def charge_prompt(self, http: HttpRequest, tokens: int) -> None:
        """Count a prompt's tokens for the request's key and in its line of the log."""
        http.state.log_fields["prompt_tokens"] = tokens
        usage = usage_of(http)
        if usage is not None:
            usage.charge(prompt=tokens)

    def _account(self, http: HttpRequest, state: ResponseState) -> None:
        """End a request's work in the engine, and count what was generated."""
        state.close()
        found = state.log_fields
        http.state.log_fields.update(found)
        usage = usage_of(http)
        if usage is not None:
            usage.charge(generated=found["completion_tokens"])

    def request_context(self, http: HttpRequest, salt: str | None = None) -> RequestContext:
        """Return a request's context; its salt is its owner's, unless keys share, and the ``salt`` that the body gives.

        Salts of two owners are never equal, whatever is given: a digest's length is fixed.
        """
        settings, usage = self.settings, usage_of(http)
        owner = "" if settings.share_prefix_cache else owner_of(http)
        return RequestContext(
            request_id=str(http.state.request_id),
            notices=notices_of(http),
            cache_salt=f"{owner}:{salt or ''}",
            max_tokens=None if usage is None else usage.key.max_tokens,
            prioritized=usage is None or len(self.keys) < 2 or settings.share_priority or usage.key.priority,
        )

    def retry_after(self) -> int:
        """Seconds for the Retry-After header."""
        stats = self.worker.stats
        return self.metrics.retry_after(stats.waiting + stats.running)

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread of preprocessing and return what it returns; ``ApiError`` for an error of its."""
        return await self.executor.run(lambda: self.with_api_errors(work))

    def with_api_errors(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns; an error of the layers below becomes an ``ApiError``."""
        try:
            return work()
        except FathomError as error:
            raise as_api_error(error, retry_after=self.retry_after()) from None
