"""Responses kept in memory for ``previous_response_id``, within bounds; whoever keeps most loses the oldest."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fathom.serve.errors import ApiError
from fathom.serve.http.json_cost import parse_cost

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """A response's body, the input items it was created from, and the response before it.

    ``nbytes`` are those it takes in memory (``memory_bytes``).
    """

    body: Json
    input_items: Sequence[Json]
    nbytes: int
    previous: str | None

    @property
    def items(self) -> tuple[Json, ...]:
        """The items of its input and of its output."""
        return (*self.input_items, *self.body["output"])


def memory_bytes(text: str) -> int:
    """Return about what the values of a JSON text take in memory, their characters included."""
    content = text.encode(errors="surrogatepass")
    return len(content) + parse_cost(content).nbytes


class ResponseStore:
    """Responses by owner and id; an owner is an API key's digest, and sees its own responses only.

    Where there are too many, the owner that keeps most loses its least recently used one: no key can push out what
    others keep beyond its share. One that alone exceeds ``max_bytes`` is not kept. Not thread-safe: it belongs to the
    event loop.
    """

    def __init__(self, *, max_responses: int, max_bytes: int) -> None:
        self._max_responses, self._max_bytes = max_responses, max_bytes
        self._kept: dict[str, OrderedDict[str, StoredResponse]] = {}
        self._bytes: Counter[str] = Counter()
        """Bytes by owner, of those that keep any."""
        self._items: dict[tuple[str, str], dict[str, Json]] = {}
        """Items by owner and id: those of each response that has one of this id."""
        self.nbytes = 0

    def __len__(self) -> int:
        """Count the responses."""
        return sum(map(len, self._kept.values()))

    def put(self, owner: str, response: StoredResponse) -> None:
        """Keep a response, and evict others while the bounds are exceeded."""
        if response.nbytes > self._max_bytes:
            return
        response_id = response.body["id"]
        self._kept.setdefault(owner, OrderedDict())[response_id] = response
        self._bytes[owner] += response.nbytes
        self.nbytes += response.nbytes
        for item in response.items:
            if "id" in item:
                self._items.setdefault((owner, item["id"]), {}).setdefault(response_id, item)
        while self.nbytes > self._max_bytes:
            self._evict(max(self._bytes, key=self._bytes.__getitem__))
        while len(self) > self._max_responses:
            self._evict(max(self._kept, key=lambda each: len(self._kept[each])))

    def get(self, owner: str, response_id: str, field: str = "response_id") -> StoredResponse:
        """Return a response; ``field`` is the request's field that names it.

        Raises:
            ApiError: 404, it is not kept here.
        """
        kept = self._kept.get(owner, OrderedDict())
        if response_id not in kept:
            raise self._missing(response_id, field)
        kept.move_to_end(response_id)
        return kept[response_id]

    def delete(self, owner: str, response_id: str) -> None:
        """Forget a response; ``ApiError`` 404 where it is not kept here."""
        if response_id not in self._kept.get(owner, ()):
            raise self._missing(response_id, "response_id")
        self._drop(owner, response_id)

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
        """Return items of kept responses by id; ``wanted`` has the request's field of each id.

        Raises:
            ApiError: 404, one of them is not kept here.
        """
        found: dict[str, Json] = {}
        for item_id, field in wanted.items():
            held = self._items.get((owner, item_id))
            if held is None:
                raise self._missing(item_id, field)
            found[item_id] = next(iter(held.values()))
        return found

    def _evict(self, owner: str) -> None:
        """Drop an owner's least recently used response."""
        self._drop(owner, next(iter(self._kept[owner])))

    def _drop(self, owner: str, response_id: str) -> None:
        response = self._kept[owner].pop(response_id)
        self.nbytes -= response.nbytes
        self._bytes[owner] -= response.nbytes
        if not self._kept[owner]:
            del self._kept[owner], self._bytes[owner]
        for item in response.items:
            held = self._items.get((owner, item.get("id", "")), {})
            held.pop(response_id, None)
            if not held:
                self._items.pop((owner, item.get("id", "")), None)

    def _missing(self, name: str, field: str) -> ApiError:
        return ApiError(
            404,
            f"{field}: {name[:80]!r} is not kept here: it is of another server or key, was created with store false, "
            f"deleted, or evicted (the latest {self._max_responses} are kept); send the whole conversation as input",
            param=field,
            code="response_not_found",
        )
