"""Loads and unloads a model off the event loop, and says what is wrong where that fails."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from fathom.engine.worker import EngineWorker
from fathom.errors import Draining, FathomError
from fathom.model.quantized import weight_bytes
from fathom.progress import NO_METRICS, NullProgress
from fathom.serve.errors import ApiError
from fathom.serve.model_definition import ModelDefinition
from fathom.system import release_free_memory

if TYPE_CHECKING:
    from fathom.inference.language_model import LanguageModel

RETRY_SECONDS = 10
"""A model that failed to load is not tried again for as long."""
logger = logging.getLogger("fathom.serve")


class _StoppedWhenDraining(NullProgress):
    """Ends a load between two tensors once the server shuts down."""

    def __init__(self, draining: Callable[[], bool]) -> None:
        self._draining = draining

    def update(
        self, done: float, total: float | None, unit: str, *, phase: str = "", metrics: Mapping[str, str] = NO_METRICS
    ) -> None:
        """Raise ``Draining`` where the server shuts down."""
        if self._draining():
            raise Draining


class ModelLoader:
    """One thread that loads models and frees what unloaded ones held."""

    def __init__(self, draining: Callable[[], bool]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fathom-load")
        self._progress = _StoppedWhenDraining(draining)

    async def load(self, definition: ModelDefinition) -> LanguageModel:
        """Return the loaded model with its engine.

        Raises:
            Draining: the server began to shut down.
            FathomError, MemoryError, OSError, RuntimeError: as loading does.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._open, definition)

    async def unload(self, worker: EngineWorker) -> None:
        """End a worker that has no requests; its memory is free once ``worker`` has no other reference."""
        await asyncio.get_running_loop().run_in_executor(self._thread, worker.close)

    async def free(self) -> None:
        """Give the memory of what is not referred to any more back to the system."""
        await asyncio.get_running_loop().run_in_executor(self._thread, _free)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _open(self, definition: ModelDefinition) -> LanguageModel:
        model = definition.open(self._progress)
        _ = model.engine  # reserves its pages
        settle()
        return model


def load_error(name: str, error: Exception) -> ApiError:
    """Return what a request for a model gets that could not be loaded."""
    if isinstance(error, ApiError):
        return error
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, FathomError | MemoryError | OSError | RuntimeError):
        message = f"model: {name!r} could not be loaded ({lines[0][:400]}); try again in {RETRY_SECONDS} s"
        return ApiError(503, message, param="model", code="model_load_failed", retry_after=RETRY_SECONDS)
    logger.error("model %s could not be loaded", name, exc_info=error)
    return ApiError(500, f"model: loading {name!r} failed, a fault of the server", code="internal_error")


def log_event(event: str, model: str, nbytes: int, seconds: float) -> None:
    """Write one line to the server's log: a model was loaded or unloaded."""
    line = {"event": event, "model": model, "bytes": nbytes, "seconds": round(seconds, 3)}
    logger.info(json.dumps(line, ensure_ascii=False))


def model_bytes(model: LanguageModel) -> int:
    """Return the bytes of a model's weights and of its page pool."""
    return weight_bytes(model.model) + model.engine.pool.nbytes


def settle() -> None:
    """Exempt all present objects from garbage collection: a pass over a model's would stall all requests for 0.1 s."""
    gc.collect()
    gc.freeze()


def _free() -> None:
    gc.unfreeze()
    settle()
    torch.cuda.empty_cache()  # does nothing where no GPU is in use
    release_free_memory()
