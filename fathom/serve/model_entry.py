"""One model of a server's pool, loaded or not: who uses it, what it takes, and what is said of it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from fathom.engine.request import EngineStats
from fathom.serve.errors import ApiError
from fathom.serve.key_usage import KeyUsage
from fathom.serve.metrics import sum_stats
from fathom.serve.model_definition import ModelDefinition
from fathom.serve.service import Service


class ModelEntry:
    """A model of the pool, loaded or not."""

    def __init__(self, definition: ModelDefinition) -> None:
        self.definition = definition
        self.service: Service | None = None
        self.nbytes = 0
        """Bytes it takes, or is about to take."""
        self.users = self.waiting = 0
        """Requests that use it, and those that wait for it; it is idle without any."""
        self.last_used = 0.0
        self.load_seconds = 0.0
        self.retiring = False
        """It takes no new requests, so that another model gets its memory; ``resumed`` is set once that is over."""
        self.resumed = asyncio.Event()
        self.load: asyncio.Task[None] | None = None
        self.failure: tuple[float, ApiError] | None = None
        self.past = EngineStats()
        """Counts of the engines it had before it was evicted."""

    @property
    def stats(self) -> EngineStats:
        """The counts of its engine, those of the engines before included."""
        service = self.service
        return sum_stats(self.past, EngineStats() if service is None else service.worker.stats)

    def allows(self, key: KeyUsage | None) -> bool:
        """Whether a key may use it; every model where there are no keys."""
        return key is None or key.models is None or self.definition.name in key.models

    def card(self, name: str, created: int) -> dict[str, Any]:
        """Return what GET /v1/models says of it under one of its names."""
        facts = dict(self.definition.facts)
        adapted = name in self.definition.adapters
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "fathom",
            "type": "model",
            "display_name": name,
            "created_at": datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z"),
            "root": name if adapted else self.definition.name,
            "parent": self.definition.name if adapted else None,
            "max_model_len": facts["context"],
            "fathom": facts | {"loaded": self.service is not None},
        }
