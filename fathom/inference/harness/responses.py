"""Answers of a run of the harness, kept one by one, so that an interrupted run goes on."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fathom.files import sha256


class Responses:
    """Answers by request: ``records`` are those of earlier runs, and ``add`` is given every further one.

    Equal requests, as of a task that asks several times, have their answers in the order they came.
    """

    def __init__(
        self, records: Iterable[Mapping[str, Any]] = (), add: Callable[[dict[str, Any]], None] = lambda record: None
    ) -> None:
        self._add = add
        self._kept: dict[str, deque[Any]] = {}
        for record in records:
            self._kept.setdefault(record["request"], deque()).append(record["answer"])

    def take(self, method: str, arguments: Sequence[Any]) -> Any:
        """Return the kept answer to a request, each once; None where there is none."""
        kept = self._kept.get(_key(method, arguments)) if self._kept else None
        return kept.popleft() if kept else None

    def keep(self, method: str, arguments: Sequence[Any], answer: Any) -> None:
        """Keep the answer to a request."""
        self._add({"request": _key(method, arguments), "answer": answer})


def _key(method: str, arguments: Sequence[Any]) -> str:
    return sha256(json.dumps([method, *arguments], default=str))
