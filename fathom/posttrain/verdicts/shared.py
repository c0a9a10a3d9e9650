"""Lists, dicts and sets that both processes hold, each a copy of its own, kept alike by the messages.

A container that crosses gets a number on both sides; every message brings what its sender's side has changed since, so
that a list the program keeps, returns or changes behaves as one list. Standard library only: sandboxed processes run
this file as it is.
"""

from __future__ import annotations

import collections
import operator
import sys
from collections.abc import Iterable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_CONTAINERS = 256
MAX_ITEMS = 20_000
"""More than these are compared before no message: all then cross anew, as copies, when they are next used."""

CONTAINERS: dict[type, str] = {
    list: "l",
    dict: "m",
    set: "s",
    bytearray: "y",
    collections.deque: "q",
    collections.Counter: "C",
    collections.OrderedDict: "O",
    collections.defaultdict: "d",
}
"""The mutable plain types, and how a message writes them."""


class SharedContainers:
    """One side's copies. It numbers its own from ``first`` in steps of two, the other side those between."""

    def __init__(self, first: int) -> None:
        self.held: dict[int, Any] = {}
        self._first = self._next = first
        self._numbers: dict[int, int] = {}
        self._contents: dict[int, Any] = {}

    def number_of(self, item: Any) -> int | None:
        """Return the number of a container that both sides hold."""
        return self._numbers.get(id(item))

    def new_number(self) -> int:
        """Return a number for one of this side's."""
        self._next += 2
        return self._next - 2

    def hold(self, number: int, item: Any) -> None:
        """Hold a container from now on."""
        self.held[number] = item
        self._numbers[id(item)] = number

    def check_foreign(self, number: Any) -> None:
        """Raise ``ValueError`` unless the other side may give this number to a container of its own."""
        if type(number) is not int or number % 2 == self._first or number < 0:
            raise ValueError("a number that is not the other side's to give")

    def settle(self, numbers: Iterable[int]) -> None:
        """Take containers for alike on both sides, as they are now."""
        for number in numbers:
            self._contents[number] = _content(self.held[number])

    def changed(self) -> list[int]:
        """Return the numbers of those whose own content is no longer what it was when they were alike."""
        return [number for number, content in self._contents.items() if not _is_content(self.held[number], content)]

    def unused(self) -> list[int]:
        """Return the numbers of those that nothing else refers to here, or of all where they are too many.

        Those that have changed are left out: the other side must hear of it first.
        """
        found = [number for number in self.held if _references(self.held, number) <= _UNUSED]
        left = len(self.held) - len(found)
        if left > MAX_CONTAINERS or (left and sum(map(len, self.held.values())) > MAX_ITEMS):
            found = list(self.held)
        changed = set(self.changed())
        return [number for number in found if number not in changed]

    def forget(self, numbers: Iterable[int]) -> None:
        """Hold containers no longer: should they cross again, they are new."""
        for number in numbers:
            item = self.held.pop(number, None)
            self._contents.pop(number, None)
            self._numbers.pop(id(item), None)


def _content(item: Any) -> Any:
    if isinstance(item, bytearray):
        return bytes(item)
    return [*item.keys(), *item.values()] if isinstance(item, dict) else list(item)


def _is_content(item: Any, content: Any) -> bool:
    if isinstance(item, bytearray):
        return bool(item == content)
    now = _content(item) if isinstance(item, dict) else item
    return len(now) == len(content) and all(map(operator.is_, now, content))


def _references(held: dict[int, Any], number: int) -> int:
    return sys.getrefcount(held[number])


_UNUSED = _references({0: []}, 0)
