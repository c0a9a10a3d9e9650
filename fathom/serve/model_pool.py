"""The models of a server: loaded on first use within a limit of memory, the least recently used idle one evicted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from starlette.requests import Request as HttpRequest

from fathom.engine.request import EngineStats
from fathom.engine.worker import EngineWorker
from fathom.errors import Draining, ResourceError
from fathom.logs import listed
from fathom.progress import NULL_PROGRESS, Progress
from fathom.serve.admission import AdmissionControl
from fathom.serve.errors import ApiError, draining, refuse
from fathom.serve.executor import PreprocessExecutor
from fathom.serve.key_usage import KeyRing, KeyUsage, usage_of
from fathom.serve.lifecycle import Lifecycle
from fathom.serve.metrics import Metrics, sum_stats
from fathom.serve.model_definition import ModelDefinition, facts_of, names_of
from fathom.serve.model_entry import ModelEntry
from fathom.serve.model_loader import RETRY_SECONDS, ModelLoader, load_error, log_event, model_bytes
from fathom.serve.response.streams import run_until_disconnect
from fathom.serve.service import ServerContext, Service
from fathom.serve.settings import ServeSettings

if TYPE_CHECKING:
    from fathom.inference.language_model import LanguageModel


_STARVATION_SECONDS = 2.0


class ModelPool:
    """All models of one server.

    ``memory`` bounds the bytes of the models loaded at once, unlimited where it is None. All methods but ``preload``
    and ``close`` are called on the event loop.
    """

    def __init__(
        self,
        definitions: Sequence[ModelDefinition],
        settings: ServeSettings,
        *,
        memory: int | None = None,
        max_waiting: int = 256,
    ) -> None:
        names = names_of(definitions)
        self.settings, self.memory = settings, memory
        self.created = int(time.time())
        self._max_waiting = max_waiting
        entries = {definition.name: ModelEntry(definition) for definition in definitions}
        self._entries = {name: entries[definition.name] for name, definition in names.items()}
        self._check_sizes()
        limits = settings.limits
        self.executor = PreprocessExecutor(
            threads=limits.preprocess_threads,
            max_jobs=limits.max_preprocessing,
            seconds=limits.preprocess_timeout_seconds,
            body_memory=limits.body_memory_bytes,
        )
        self.lifecycle = Lifecycle(self.workers, stall_timeout_seconds=settings.stall_timeout_seconds)
        self.metrics = Metrics(self._stats, lambda: self.lifecycle.stalled_seconds)
        admission = AdmissionControl(limits.max_concurrent_requests, self.metrics, self.retry_after)
        self.keys = KeyRing(
            settings, {name: each.definition.name for name, each in self._entries.items()}, self.metrics
        )
        self._context = ServerContext(
            keys=self.keys,
            settings=settings,
            executor=self.executor,
            lifecycle=self.lifecycle,
            metrics=self.metrics,
            admission=admission,
        )
        self._loader = ModelLoader(lambda: self.lifecycle.draining)
        self._loading = asyncio.Lock()
        self._changed = asyncio.Event()
        self._waiters = 0

    @classmethod
    def of(
        cls,
        name: str,
        model: LanguageModel,
        settings: ServeSettings,
        *,
        aliases: Sequence[str] = (),
        adapters: Sequence[str] = (),
        max_waiting: int = 256,
    ) -> ModelPool:
        """Return a pool of one model that is loaded already, its engine's worker started.

        ``adapters`` are names of adapters that its engine holds.
        """
        pool = model.engine.pool
        facts = facts_of(
            model.spec,
            model.tokenizer,
            model.suggestions,
            engine=model.engine.spec,
            cache_tokens=pool.num_pages * pool.page_size,
            bits=model.model.dtype.itemsize * 8,
            nbytes=model_bytes(model),
            weights=model.weights,
        )
        definition = ModelDefinition(
            name=name, open=lambda progress: model, facts=facts, aliases=tuple(aliases), adapters=tuple(adapters)
        )
        made = cls([definition], settings, max_waiting=max_waiting)
        made.preload(name)
        return made

    @property
    def names(self) -> list[str]:
        """The models' names, aliases left out."""
        return [entry.definition.name for entry in self._models()]

    def preload(self, name: str, progress: Progress = NULL_PROGRESS) -> Service:
        """Load a model before the server starts, and return it."""
        entry = self._entries[name]
        return self._loaded(entry, entry.definition.open(progress))

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver the outputs of models that are loaded already to an event loop."""
        for service in self._services():
            service.engine_client.attach(loop)

    async def acquire(self, http: HttpRequest, name: str | None) -> Service:
        """Return the model that a request names, loaded, and keep it so until the end of the HTTP exchange.

        The request's body must have been read. Loading waits for memory that other models' requests use. A model that
        is never idle takes no new requests once another has waited for as long as loading takes, two seconds at least.

        Raises:
            ApiError: 404, there is no such model; 403, the key may not use it; 400, none is named where several are
                served; 503, it could not be loaded, or not in time, or the server is shutting down; 429, too many
                requests wait for a model.
            ClientDisconnected: the client left first.
        """
        entry = self._find(name, usage_of(http))
        http.state.log_fields["model"] = entry.definition.name
        cleanup: ExitStack = http.state.cleanup
        while entry.service is None or entry.retiring:
            entry.waiting += 1
            try:
                await run_until_disconnect(self._wait_for(entry), http.receive)
            finally:
                entry.waiting -= 1
                self._changed.set()
        entry.users += 1
        cleanup.callback(self._release, entry)
        if name is not None and name in entry.definition.adapters:
            return entry.service.with_adapter(name)
        return entry.service

    def cards(self, key: KeyUsage | None = None) -> list[dict[str, Any]]:
        """Return what GET /v1/models lists: every name that a key may use, aliases included, with OpenAI's and
        Anthropic's fields."""
        return [entry.card(name, self.created) for name, entry in self._entries.items() if entry.allows(key)]

    def card(self, name: str, key: KeyUsage | None = None) -> dict[str, Any]:
        """Return one of ``cards``; ``ApiError`` 404 where there is no such name, 403 where the key may not use it."""
        return self._find(name, key).card(name, self.created)

    def loaded(self, name: str) -> Service | None:
        """Return a model if it is loaded."""
        return self._entries[name].service

    def retry_after(self) -> int:
        """Seconds for the Retry-After header."""
        stats = [service.worker.stats for service in self._services()]
        return self.metrics.retry_after(sum(each.waiting + each.running for each in stats))

    def begin_drain(self) -> None:
        """Take no new requests, and end those that wait for a model."""
        self.lifecycle.draining = True
        self._changed.set()
        for entry in self._models():
            entry.resumed.set()

    def close(self) -> None:
        """End every model's worker and all threads."""
        for service in self._services():
            service.worker.close()
        self._loader.close()
        self.executor.close()

    async def _wait_for(self, entry: ModelEntry) -> None:
        """Wait until a model is loaded and takes requests; raises as ``acquire``."""
        if entry.failure is not None and time.monotonic() - entry.failure[0] < RETRY_SECONDS:
            raise entry.failure[1]
        if self._waiters >= self.settings.limits.max_concurrent_requests:
            raise ApiError(
                429, f"{self._waiters} requests wait for models; try again in 10 s", code="busy", retry_after=10
            )
        self._waiters += 1
        try:
            async with asyncio.timeout(self.settings.load_timeout_seconds):
                while entry.service is None or entry.retiring:
                    if self.lifecycle.draining:
                        raise draining(self.retry_after())
                    if entry.service is not None:
                        entry.resumed.clear()
                        await entry.resumed.wait()
                        continue
                    if entry.load is None or entry.load.done():  # one that nobody waited for any more ends without it
                        entry.load = asyncio.create_task(self._load(entry), name=f"load {entry.definition.name}")
                        entry.load.add_done_callback(_retrieve)
                    await asyncio.shield(entry.load)
        except TimeoutError:
            raise self._too_late(entry) from None
        finally:
            self._waiters -= 1

    async def _load(self, entry: ModelEntry) -> None:
        """Load a model once there is memory for it; one at a time."""
        name = entry.definition.name
        async with self._loading:
            if not await self._make_room(entry):
                return
            entry.nbytes, began = entry.definition.nbytes, time.monotonic()
            try:
                service = self._loaded(entry, await self._loader.load(entry.definition))
            except Draining:
                raise draining(self.retry_after()) from None
            except Exception as error:
                entry.nbytes = 0
                self.metrics.load_failures.labels(name).inc()
                failure = load_error(name, error)
                entry.failure = (time.monotonic(), failure)
                raise failure from None
            service.engine_client.attach(asyncio.get_running_loop())
            seconds = time.monotonic() - began
            self.metrics.load_seconds.labels(name).observe(seconds)
            entry.load_seconds = seconds
            log_event("model_loaded", name, entry.nbytes, seconds)

    def _loaded(self, entry: ModelEntry, model: LanguageModel) -> Service:
        """Start the engine of a model that was loaded."""
        worker = EngineWorker(model.engine, max_waiting=self._max_waiting)
        service = Service(entry.definition.name, model, worker, self._context)
        worker.start()
        entry.service, entry.nbytes, entry.failure = service, model_bytes(model), None
        self.metrics.model_bytes.labels(entry.definition.name).set(entry.nbytes)
        return service

    async def _make_room(self, entry: ModelEntry) -> bool:
        """Evict idle models until a model fits; False where nobody waits for it any more."""
        since = time.monotonic()
        try:
            while entry.waiting:
                if self.lifecycle.draining:
                    raise draining(self.retry_after())
                used = sum(other.nbytes for other in self._models())
                if self.memory is None or used + entry.definition.nbytes <= self.memory:
                    return True
                self._changed.clear()
                loaded = [other for other in self._models() if other.service is not None]
                idle = [other for other in loaded if not other.users and (other.retiring or not other.waiting)]
                if idle:
                    await self._evict(min(idle, key=lambda other: other.last_used))
                else:
                    await self._wait_for_idle(loaded, since + max(_STARVATION_SECONDS, entry.load_seconds))
            return False
        finally:
            for other in self._models():
                if other.retiring:
                    other.retiring = False
                    other.resumed.set()

    async def _wait_for_idle(self, loaded: Sequence[ModelEntry], until: float) -> None:
        """Wait for a change, at most ``until`` then: from then on the least recently used model is retiring."""
        seconds = until - time.monotonic()
        if seconds <= 0 and not any(other.retiring for other in loaded):
            min(loaded, key=lambda other: other.last_used).retiring = True
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds if seconds > 0 else None):
                await self._changed.wait()

    async def _evict(self, entry: ModelEntry) -> None:
        """Unload an idle model: requests for it from now on load it again."""
        name, nbytes, began = entry.definition.name, entry.nbytes, time.monotonic()
        service, entry.service = entry.service, None
        assert service is not None
        worker = service.worker
        del service
        await self._loader.unload(worker)
        entry.past = sum_stats(entry.past, worker.stats)
        del worker
        await self._loader.free()
        entry.nbytes = 0
        self.metrics.evictions.labels(name).inc()
        self.metrics.model_bytes.labels(name).set(0)
        log_event("model_unloaded", name, nbytes, time.monotonic() - began)

    def _release(self, entry: ModelEntry) -> None:
        entry.users -= 1
        entry.last_used = time.monotonic()
        if not entry.users:
            self._changed.set()

    def _find(self, name: str | None, key: KeyUsage | None) -> ModelEntry:
        entry = None if name is None else self._entries.get(name)
        if entry is not None and entry.allows(key):
            return entry
        allowed = [each for each in self._models() if each.allows(key)]
        if name is None and len(allowed) == 1:
            return allowed[0]
        names = [each for entry in allowed for each in (entry.definition.name, *entry.definition.adapters)]
        if name is None:
            raise refuse("model", "is missing, and several models are served", f"name one of {_quoted(names)}")
        use = f"use {names[0]!r}" if len(names) == 1 else f"use one of {_quoted(names)}"
        if entry is not None:
            raise ApiError(403, f"model: this key may not use {name!r}; {use}", param="model", code="model_not_allowed")
        raise ApiError(404, f"model: {name[:80]!r} is not served here; {use}", param="model", code="model_not_found")

    def _check_sizes(self) -> None:
        for entry in self._models():
            need = entry.definition.nbytes
            if self.memory is not None and need > self.memory:
                raise ResourceError(
                    f"--model-memory: {entry.definition.name} alone takes {need:,} bytes, more than the "
                    f"{self.memory:,} given; give at least {need:,}, a smaller --cache-tokens, or leave the model out"
                )

    def _too_late(self, entry: ModelEntry) -> ApiError:
        seconds = self.settings.load_timeout_seconds
        busy = [other.definition.name for other in self._models() if other.service is not None and other.users]
        reason = f"memory is held by {_quoted(busy)}, in use" if busy else "loading takes longer"
        return ApiError(
            503,
            f"model: {entry.definition.name!r} was not loaded within {seconds:g} s ({reason}); try again in 30 s",
            param="model",
            code="model_loading",
            retry_after=30,
        )

    def _models(self) -> Iterator[ModelEntry]:
        return (entry for name, entry in self._entries.items() if name == entry.definition.name)

    def _services(self) -> list[Service]:
        return [entry.service for entry in self._models() if entry.service is not None]

    def workers(self) -> Mapping[str, EngineWorker]:
        """Return the loaded models' workers by name."""
        return {service.name: service.worker for service in self._services()}

    def _stats(self) -> Mapping[str, EngineStats]:
        """Return every model's counts, those of its evicted engines included."""
        return {entry.definition.name: entry.stats for entry in self._models()}


def _retrieve(load: asyncio.Task[None]) -> None:
    """Mark a load's error as seen: all who waited for it may have left."""
    if not load.cancelled():
        load.exception()


def _quoted(names: Sequence[str]) -> str:
    """Return names for a message, the first few of many."""
    return listed([repr(name[:80]) for name in names])
