"""Calls between two processes over two pipes: requests, replies and the objects each lends the other.

A message is four bytes of length and one JSON object. A request names a function of ``peer.SERVED`` and its arguments;
while one side waits for a reply it serves what the other asks. Plain values cross by value, everything else by number.
Lists, dicts and sets of plain values are kept alike on both sides. The sender of a message is not
trusted: whatever is wrong with one ends the connection. Standard library only: sandboxed processes run this file.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import sys
import threading
import types
from collections.abc import Callable

from fathom.posttrain.verdicts import mirrors, names
from fathom.posttrain.verdicts.plain_values import MALFORMED, ValueDecoder, ValueEncoder
from fathom.posttrain.verdicts.shared import SharedContainers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fathom.posttrain.verdicts.plain_values import Json

MAX_MESSAGE_BYTES = 16 << 20
_TEXT_CHARS = 2000
_COMPARE = frozenset((*names.COMPARISONS, "__hash__"))
"""What Python does while it walks through containers: emptied meanwhile, a dict would equal another."""


class PeerLost(BaseException):
    """The other process ended or sent what is no message; no ``except Exception`` of a test may hide it."""


class Peer:
    """One side of the connection.

    ``strict`` is the tests' side: an object of the program then has no say in how it compares with a plain value.
    ``failed`` is what a check raised that the other side called, ``named`` the names of errors that it may suppress.
    ``may`` decides which request the other side may make of which object of this one. Unless ``stops``, a
    ``StopIteration`` comes from the other side's iterators only: from another call it would end a ``map`` of that.
    """

    def __init__(
        self, reading: int, writing: int, *, strict: bool, may: Callable[[str, list[Any]], bool] = lambda *_: True
    ) -> None:
        self.strict = strict
        self.stops = not strict
        self.named: frozenset[str] = frozenset()
        self.failed: AssertionError | None = None
        self.lost = ""
        self.namespace: dict[str, Any] = {}
        self._reading, self._writing, self._may = reading, writing, may
        self._lent: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}
        self._mirrors: dict[int, Any] = {}
        self._lock = threading.RLock()
        self._shared = SharedContainers(0 if strict else 1)
        self._forgotten: list[int] = []
        self._asked = 0
        self._waiting = self._reading_depth = self._comparing = 0

    def request(self, function: str, /, *arguments: Any, **named: Any) -> Any:
        """Have the other side apply a function; raises what that raised.

        Raises:
            PeerLost: there is no other side any more.
            ValueError: the arguments are more than a message holds.
        """
        with self._lock:
            if not self.strict and not self._waiting:
                raise RuntimeError("the tests are not waiting for the program, which alone may call back")
            self._asked += 1
            number = self._asked
            if self.strict and not self._reading_depth:  # what is being read is not in use yet
                unused = self._shared.unused()
                self._shared.forget(unused)
                self._forgotten += unused
            body: dict[str, Json] = {"n": number, "f": function, "d": self._forgotten}
            encoder = ValueEncoder(self._export, self._shared)
            body["a"] = encoder.values(arguments)
            body["k"] = dict(zip(named, encoder.values(named.values()), strict=True))
            body["t"] = encoder.table()
            self._send(body)
            self._forgotten = []
            encoder.sent()
            compares = self.strict and (function == "plain" or (function == "special" and arguments[0] in _COMPARE))
            self._comparing += compares
            stops = self.stops or (function == "special" and arguments[0] == "__next__")
            try:
                return self._reply(number)
            except StopIteration as error:
                if stops:
                    raise
                raise RuntimeError("the program raised StopIteration") from error
            finally:
                self._comparing -= compares

    def _reply(self, number: int) -> Any:
        while "f" in (message := self._receive()):
            self.serve(message)
        self._reading_depth += 1
        try:
            if message["n"] != number:
                raise ValueError("a reply to no request")
            decoder = ValueDecoder(self._resolve, message["t"], self._shared, frozen=bool(self._comparing))
            raised = "x" in message
            result = decoder.value(message["x" if raised else "v"])
            if raised and not isinstance(result, BaseException):
                raise TypeError("what was raised is no exception")
        except MALFORMED as error:
            self.fail(f"sent what is no reply ({type(error).__name__})")
        finally:
            self._reading_depth -= 1
        if raised:
            raise result
        return result

    def serve_all(self) -> None:
        """Serve requests until the other side closes its pipe."""
        while True:
            try:
                message = self._receive()
            except PeerLost:
                return
            self.serve(message)

    def serve(self, message: dict[str, Json]) -> None:
        """Do what a request asks and send its reply."""
        self._waiting += 1
        self._reading_depth += 1
        try:
            if not self.strict:
                self._shared.forget(message["d"])
            decoder = ValueDecoder(self._resolve, message["t"], self._shared, frozen=bool(self._comparing))
            number, function = int(message["n"]), str(message["f"])
            arguments = decoder.values(message["a"])
            named = {str(name): decoder.value(node) for name, node in message["k"].items()}
        except MALFORMED as error:
            self.fail(f"sent what is no request ({type(error).__name__})")
        finally:
            self._reading_depth -= 1
        outcome = "v"
        try:
            if not self._may(function, arguments):
                kind = AttributeError if function.endswith("attr") else PermissionError
                raise kind(f"the tests do not let the program use {function} on this object")
            result = SERVED[function](self, *arguments, **named)
        except PeerLost:
            raise
        except BaseException as error:
            outcome, result = "x", error
            if type(error) is AssertionError and self.failed is None:
                self.failed = error
        with self._lock:
            self._waiting -= 1
            _flush()
            self._answer(number, outcome, result)

    def _answer(self, number: int, outcome: str, result: Any) -> None:
        encoder = ValueEncoder(self._export, self._shared)
        try:
            self._send({"n": number, outcome: encoder.value(result), "t": encoder.table()})
        except Exception as error:  # too deep, too large, or changed by a thread meanwhile
            text = f"the result cannot be passed on: {_text(error)}"
            self._send({"n": number, "x": ["E", "ValueError", text], "t": []})
        else:
            encoder.sent()

    def fail(self, why: str) -> Any:
        """End the connection; every later request fails."""
        self.lost = self.lost or why
        raise PeerLost(self.lost)

    def _send(self, body: Json) -> None:
        data = json.dumps(body, separators=(",", ":")).encode()
        if len(data) > MAX_MESSAGE_BYTES:
            raise ValueError(f"more than {MAX_MESSAGE_BYTES >> 20} MiB")
        data = len(data).to_bytes(4, "big") + data
        try:
            while data:
                data = data[os.write(self._writing, data) :]
        except OSError:
            self.fail("ended")

    def _receive(self) -> dict[str, Json]:
        if self.lost:
            self.fail(self.lost)
        size = int.from_bytes(self._read(4), "big")
        if size > MAX_MESSAGE_BYTES:
            self.fail(f"sent a message of more than {MAX_MESSAGE_BYTES >> 20} MiB")
        data = self._read(size)
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            self.fail("sent what is no JSON")
        return message if isinstance(message, dict) else self.fail("sent what is no message")

    def _read(self, size: int) -> bytes:
        pieces = []
        while size:
            try:
                piece = os.read(self._reading, min(size, 1 << 20))
            except OSError:
                piece = b""
            if not piece:
                self.fail("ended")
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def lend(self, item: Any) -> int:
        """Return the number by which the other side refers to an object of this one, which lives from now on."""
        number = self._numbers.get(id(item))
        if number is None:
            number = self._numbers[id(item)] = len(self._lent)
            self._lent[number] = item
        return number

    def _export(self, encoder: ValueEncoder, item: Any) -> Json:
        mirrored = mirrors.number_of(item)
        if mirrored is not None:
            return ["o", mirrored]
        if isinstance(item, types.TracebackType):
            return None
        if isinstance(item, types.ModuleType):
            return ["n", item.__name__, ""] if item.__name__ in names.USABLE_MODULES else self._lend_object(item)
        named = names.standard_name(item)
        if named is not None:
            return ["n", *named]
        if type(item) in _VIEWS:
            tag, held = _VIEWS[type(item)]
            return [tag, encoder.value(held(item))]
        if isinstance(item, BaseException):
            arguments = encoder.values(item.args)
            if type(item).__module__ == "builtins":
                return ["E", type(item).__name__, *arguments]
            return ["e", self.lend(item), self.lend(type(item)), _text(item), *arguments]
        return ["k", self.lend(item)] if isinstance(item, type) else self._lend_object(item)

    def _lend_object(self, item: Any) -> Json:
        return ["h", self.lend(item), self.lend(type(item))]

    def _resolve(self, decoder: ValueDecoder, node: list[Json]) -> Any:
        tag = node[0]
        if tag == "o":
            return self._lent[node[1]]
        if tag == "n":
            return self._standard(node[1], node[2])
        if tag == "E":
            return _exception(node[1], decoder.values(node[2:]))
        if tag == "k":
            return self._class(node[1])
        if tag in ("keys", "values", "items"):
            return getattr(dict, tag)(decoder.value(node[1]))
        number = node[1]
        if number not in self._mirrors:
            kind = self._class(node[2])
            parts = decoder.values(node[3:]) if tag == "e" else []
            self._mirrors[int(number)] = mirrors.make_object(kind, number, parts)
        return self._mirrors[number]

    def _class(self, number: int) -> Any:
        if number not in self._mirrors:
            described = self.request("describe", mirrors.Reference(int(number)))
            self._mirrors[number] = mirrors.make_class(self, number, *described)
        return self._mirrors[number]

    def _standard(self, module: str, name: str) -> Any:
        if not name and module in names.USABLE_MODULES:
            return importlib.import_module(module)
        if not names.may_be_named(module, name):
            raise ValueError("no object that may be named")
        return getattr(importlib.import_module(module), name)


_VIEWS: dict[type, tuple[str, Callable[[Any], dict[Any, Any]]]] = {
    type({}.keys()): ("keys", dict.fromkeys),
    type({}.values()): ("values", lambda view: dict(enumerate(view))),
    type({}.items()): ("items", dict),
}


def _exception(name: str, arguments: list[Any]) -> BaseException:
    kind = getattr(builtins, name)
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        raise TypeError("no exception of Python")
    try:
        error = kind(*arguments)
    except (TypeError, ValueError):
        error = kind.__new__(kind, *arguments)
        error.args = tuple(arguments)
    return error


def _text(error: Any) -> str:
    try:
        return str(error)[:_TEXT_CHARS]
    except Exception:
        return ""


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            continue


def _describe(_: Peer, kind: Any) -> tuple[Any, ...]:
    if not isinstance(kind, type):
        raise TypeError("only classes are described")
    base = names.plain_base(kind)
    bases = [part for part in kind.__bases__ if part is not object and not (base and part in names.PLAIN_BASES)]
    if issubclass(kind, BaseException) and names.standard_name(kind) is not None:
        bases = [kind]  # so that this very class is what the other side catches
    doc = kind.__doc__ if type(kind.__doc__) is str else None
    return kind.__name__, doc, bases, names.own_specials(kind), base, mirrors.standard_kind(kind)


def _special(peer: Peer, name: str, item: Any, /, *arguments: Any, **named: Any) -> Any:
    if name in names.OPERATIONS:
        return names.OPERATIONS[name](item, *arguments)
    if name not in names.SPECIAL:  # another, such as __getattribute__, would reach everything
        raise PermissionError("no special method that crosses")
    if name == "__call__":
        return item(*arguments, **named)
    return getattr(type(item), name)(item, *arguments)


SERVED: dict[str, Callable[..., Any]] = {
    "global": lambda peer, name: peer.namespace[name],
    "names": lambda peer: [name for name in peer.namespace if type(name) is str],
    "describe": _describe,
    "special": _special,
    "getattr": lambda peer, item, name: getattr(item, name),
    "setattr": lambda peer, item, name, value: setattr(item, name, value),
    "delattr": lambda peer, item, name: delattr(item, name),
    "plain": lambda peer, item: names.plain_copy(item),
    "await": lambda peer, item: names.await_here(item),
    "signature": lambda peer, item: mirrors.parameters_of(item),
}
"""What one side may ask of the other."""
