"""Plain values as JSON: what passes between a program and its tests without any code of either.

A value of exactly a plain type is written as what it is: JSON's own types as such, others as a list that begins with a
tag. Lists, dicts, sets and their like go into a table and are referred to by number, so that a value that holds itself,
or one list in two places, arrives as it was. Everything else is left to the ``export`` of the writer and the
``resolve`` of the reader. Standard library only: sandboxed processes run this file as it is.
"""

from __future__ import annotations

import binascii
import collections
import sys
from collections.abc import Callable, Sequence

from fathom.posttrain.verdicts.shared import CONTAINERS, SharedContainers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = Any
    """What ``json`` reads and writes."""

MAX_DEPTH = 100
"""Tuples within tuples; lists and dicts may be nested as deep as memory allows."""

_SMALL_INT = 1 << 63
_LATE = (
    ("decimal", "Decimal"),
    ("fractions", "Fraction"),
    ("datetime", "date"),
    ("datetime", "datetime"),
    ("datetime", "time"),
    ("datetime", "timedelta"),
)


class ValueEncoder:
    """Writes values into one message; containers that both sides hold are written where they have changed.

    Raises:
        ValueError: tuples are nested more than ``MAX_DEPTH`` deep.
    """

    def __init__(self, export: Callable[[ValueEncoder, Any], Json], shared: SharedContainers) -> None:
        self._export = export
        self._shared = shared
        self._new: dict[int, int] = {}
        self._written: list[tuple[int, Any]] = []
        self._depth = 0

    def value(self, item: Any) -> Json:
        """Return the JSON of a value; its containers are written by ``table``."""
        kind = type(item)
        if kind is str:
            return item if item.isascii() else _text(item)
        if item is None or kind is bool or kind is float:
            return item
        if kind is int:
            return item if -_SMALL_INT < item < _SMALL_INT else ["i", hex(item)]
        if kind in CONTAINERS:
            return ["r", self._number(item)]
        if kind is tuple or kind is frozenset:
            return ["t" if kind is tuple else "f", *self.values(item)]
        if kind is bytes:
            return ["b", _base64(item)]
        if kind is complex:
            return ["c", item.real, item.imag]
        if kind is range or kind is slice:
            return ["g" if kind is range else "l", *self.values((item.start, item.stop, item.step))]
        if item is Ellipsis or item is NotImplemented:
            return ["." if item is Ellipsis else "?"]
        late = _late_type(kind)
        return self._export(self, item) if late is None else _late_value(self, late, item)

    def values(self, items: Any) -> list[Json]:
        """Return the JSON of several values, one level deeper."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"a value is nested more than {MAX_DEPTH} deep")
        try:
            return [self.value(item) for item in items]
        finally:
            self._depth -= 1

    def table(self) -> list[Json]:
        """Return every container that is new to the other side or has changed; the last part of a message."""
        self._written += [(number, self._shared.held[number]) for number in self._shared.changed()]
        # writing one may meet others, which then follow it in the list
        return [[number, CONTAINERS[type(item)], *self._content(item)] for number, item in self._written]

    def sent(self) -> None:
        """Take note that the message has gone: both sides now hold its containers."""
        for number, item in self._written:
            self._shared.hold(number, item)
        self._shared.settle(number for number, _ in self._written)

    def _number(self, item: Any) -> int:
        number = self._shared.number_of(item)
        if number is None:
            number = self._new.get(id(item))
        if number is None:
            number = self._new[id(item)] = self._shared.new_number()
            self._written.append((number, item))
        return number

    def _content(self, item: Any) -> list[Json]:
        kind = type(item)
        if kind is bytearray:
            return [_base64(bytes(item))]
        if kind is collections.deque:
            return [item.maxlen, *map(self.value, item)]
        if kind is list or kind is set:
            return list(item) if _is_json(item) else [self.value(part) for part in item]
        factory = [self.value(item.default_factory)] if kind is collections.defaultdict else []
        return factory + [self.value(part) for pair in item.items() for part in pair]


class ValueDecoder:
    """Reads the values of one message, whose sender is not trusted.

    ``table`` holds what ``ValueEncoder.table`` wrote; ``frozen`` lets it change no container that is here. Bad JSON
    raises one of ``MALFORMED``, whatever is wrong with it.
    """

    def __init__(
        self,
        resolve: Callable[[ValueDecoder, list[Json]], Any],
        table: Sequence[Json],
        shared: SharedContainers,
        *,
        frozen: bool = False,
    ) -> None:
        self._resolve = resolve
        self.containers = shared.held
        for entry in table:
            if entry[0] in self.containers:
                if frozen:
                    raise ValueError("a container changes while it is compared")
            else:
                shared.check_foreign(entry[0])
                shared.hold(entry[0], _EMPTY[entry[1]](entry))
        for entry in table:
            self._fill(self.containers[entry[0]], entry[1:])
        shared.settle(entry[0] for entry in table)

    def value(self, node: Json) -> Any:
        """Return the value that a JSON stands for."""
        if not isinstance(node, list):
            if isinstance(node, dict):
                raise ValueError("a JSON object is no value")
            return node
        reader = _READERS.get(node[0])
        return self._resolve(self, node) if reader is None else reader(self, node)

    def values(self, nodes: Sequence[Json]) -> list[Any]:
        """Return several values."""
        if not {list, dict} & set(map(type, nodes)):
            return list(nodes)
        return [self.value(node) for node in nodes]

    def _fill(self, item: Any, entry: list[Json]) -> None:
        kind = type(item)
        if CONTAINERS[kind] != entry[0]:
            raise ValueError(f"a {kind.__name__} does not become another type")
        if kind is bytearray:
            item[:] = binascii.a2b_base64(entry[1])
            return
        content = self.values(entry[2 if kind in (collections.deque, collections.defaultdict) else 1 :])
        if kind is collections.defaultdict:
            item.default_factory = self.value(entry[1])
        item.clear()
        if kind is list or kind is collections.deque:
            item.extend(content)
        elif kind is set:
            item.update(content)
        else:
            for place in range(0, len(content), 2):
                item[content[place]] = content[place + 1]


MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError)
"""What reading a message that nobody should have written raises."""

_EMPTY: dict[str, Callable[[list[Json]], Any]] = {
    "l": lambda entry: [],
    "m": lambda entry: {},
    "s": lambda entry: set(),
    "y": lambda entry: bytearray(),
    "q": lambda entry: collections.deque(maxlen=entry[2]),
    "C": lambda entry: collections.Counter(),
    "O": lambda entry: collections.OrderedDict(),
    "d": lambda entry: collections.defaultdict(),
}


def _is_json(items: Any) -> bool:
    """Whether all are written as they are: long lists of numbers or of ASCII need no look at each."""
    kinds = set(map(type, items))
    if kinds == {int}:
        return bool(min(items) > -_SMALL_INT and max(items) < _SMALL_INT)
    return kinds <= {float, bool, type(None)} or (kinds == {str} and all(map(str.isascii, items)))


def _text(item: str) -> Json:
    try:
        item.encode()
    except UnicodeEncodeError:  # two surrogates side by side would be read as one character
        return ["u", _base64(item.encode("utf-32-le", "surrogatepass"))]
    return item


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def _late_type(kind: type) -> str | None:
    """The name of a type of the standard library that may not have been imported; of exactly that type."""
    for module, name in _LATE:
        if kind.__name__ == name and getattr(sys.modules.get(module), name, None) is kind:
            return name
    return None


def _late_value(encoder: ValueEncoder, name: str, item: Any) -> Json:
    if name == "Decimal":
        return ["D", str(item)]
    if name == "Fraction":
        return ["F", *encoder.values((item.numerator, item.denominator))]
    if name == "timedelta":
        return ["w", item.days, item.seconds, item.microseconds]
    if name == "date":
        return ["a", item.year, item.month, item.day]
    day = [item.year, item.month, item.day] if name == "datetime" else []
    zone = None if item.tzinfo is None else encoder.value(item.utcoffset())
    return ["M" if day else "T", *day, item.hour, item.minute, item.second, item.microsecond, item.fold, zone]


def _late_read(decoder: ValueDecoder, node: list[Json]) -> Any:
    """Return one of ``_LATE``; of numbers alone, since these types take texts too, ``Fraction`` even "1e999999999"."""
    tag, parts = node[0], node[1:]
    if tag == "D":
        from decimal import Decimal

        if type(parts[0]) is not str:
            raise ValueError("a Decimal is written as its digits")
        return Decimal(parts[0])
    if tag == "F":
        from fractions import Fraction

        return Fraction(*_whole(decoder.values(parts)))
    import datetime

    if tag in "wa":
        return (datetime.timedelta if tag == "w" else datetime.date)(*_whole(parts))
    *numbers, fold, zone = parts
    _whole(numbers)
    offset = decoder.value(zone)
    zoned = None if offset is None else datetime.timezone(offset)
    moment: Callable[..., Any] = datetime.datetime if tag == "M" else datetime.time
    return moment(*numbers, tzinfo=zoned, fold=fold)


def _whole(parts: list[Any]) -> list[int]:
    if any(type(part) is not int for part in parts):
        raise ValueError("not whole numbers")
    return parts


_READERS: dict[str, Callable[[ValueDecoder, list[Json]], Any]] = {
    "i": lambda decoder, node: int(node[1], 16),
    "r": lambda decoder, node: decoder.containers[node[1]],
    "t": lambda decoder, node: tuple(decoder.values(node[1:])),
    "f": lambda decoder, node: frozenset(decoder.values(node[1:])),
    "b": lambda decoder, node: binascii.a2b_base64(node[1]),
    "c": lambda decoder, node: complex(node[1], node[2]),
    "g": lambda decoder, node: range(*decoder.values(node[1:])),
    "l": lambda decoder, node: slice(*decoder.values(node[1:])),
    ".": lambda decoder, node: Ellipsis,
    "?": lambda decoder, node: NotImplemented,
    "u": lambda decoder, node: binascii.a2b_base64(node[1]).decode("utf-32-le", "surrogatepass"),
    **dict.fromkeys("DFwaMT", _late_read),
}
