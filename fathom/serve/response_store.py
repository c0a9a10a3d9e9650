"""Responses kept in memory for ``previous_response_id``: bounded, the least recently used one evicted."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fathom.serve.errors import ApiError

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """A response's body, the input items it was created from, and the response before it.

    ``input_bytes`` are those of the input items as JSON, which is measured once, in a thread.
    """

    body: Json
    input_items: Sequence[Json]
    input_bytes: int
    previous: str | None

    @property
    def nbytes(self) -> int:
        """Bytes of its JSON."""
        return len(json.dumps(self.body)) + self.input_bytes

    @property
    def items(self) -> tuple[Json, ...]:
        """The items of its input and of its output."""
        return (*self.input_items, *self.body["output"])


class ResponseStore:
    """Responses by owner and id; an owner is an API key's digest, and sees its own responses only.

    One that alone exceeds ``max_bytes`` is not kept. Not thread-safe: it belongs to the event loop.
    """

    def __init__(self, *, max_responses: int, max_bytes: int) -> None:
        self._max_responses, self._max_bytes = max_responses, max_bytes
        self._kept: OrderedDict[tuple[str, str], tuple[StoredResponse, int]] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        """Count the responses."""
        return len(self._kept)

    def put(self, owner: str, response: StoredResponse) -> None:
        """Keep a response, and evict the least recently used ones that exceed the bounds."""
        nbytes = response.nbytes
        if nbytes > self._max_bytes:
            return
        self._kept[owner, response.body["id"]] = (response, nbytes)
        self.nbytes += nbytes
        while self.nbytes > self._max_bytes or len(self._kept) > self._max_responses:
            _, (_, freed) = self._kept.popitem(last=False)
            self.nbytes -= freed

    def get(self, owner: str, response_id: str, field: str = "response_id") -> StoredResponse:
        """Return a response; ``field`` is the request's field that names it.

        Raises:
            ApiError: 404, it is not kept here.
        """
        found = self._kept.get((owner, response_id))
        if found is None:
            raise self._missing(response_id, field)
        self._kept.move_to_end((owner, response_id))
        return found[0]

    def delete(self, owner: str, response_id: str) -> None:
        """Forget a response; ``ApiError`` 404 where it is not kept here."""
        found = self._kept.pop((owner, response_id), None)
        if found is None:
            raise self._missing(response_id, "response_id")
        self.nbytes -= found[1]

    def history(self, owner: str, response_id: str) -> list[Json]:
        """Return the items of a conversation up to a response, in order.

        Raises:
            ApiError: 404, this response or one before it is not kept here.
        """
        chain: list[StoredResponse] = []
        following: str | None = response_id
        while following is not None:
            chain.append(self.get(owner, following, "previous_response_id"))
            following = chain[-1].previous
        return [item for each in reversed(chain) for item in each.items]

    def items(self, owner: str, wanted: Mapping[str, str]) -> dict[str, Json]:
        """Return items of kept responses by id, found in one pass; ``wanted`` has the request's field of each id.

        Raises:
            ApiError: 404, one of them is not kept here.
        """
        found: dict[str, Json] = {}
        for (its_owner, _), (response, _) in self._kept.items() if wanted else ():
            if its_owner == owner:
                for item in response.items:
                    if item.get("id") in wanted:
                        found.setdefault(item["id"], item)
        for item_id, field in wanted.items():
            if item_id not in found:
                raise self._missing(item_id, field)
        return found

    def _missing(self, name: str, field: str) -> ApiError:
        return ApiError(
            404,
            f"{field}: {name[:80]!r} is not kept here: it is of another server or key, was created with store false, "
            f"deleted, or evicted (the latest {self._max_responses} are kept); send the whole conversation as input",
            param=field,
            code="response_not_found",
        )
