"""The process of the tests: it runs them, with the program's names standing for calls to the program's process.

A name that the tests neither define nor import is the program's; those of Python's builtins are always Python's.
``import answer`` and ``from answer import *`` work. Modules that the program imported are imported here anew.
Standard library only: sandboxed processes run this file as it is.
"""

from __future__ import annotations

import builtins
import sys
import types
from collections.abc import Iterator

from fathom.posttrain.verdicts import mirrors, names
from fathom.posttrain.verdicts.peer import Peer, PeerLost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MODULE = "checks"
_OPTIMIZED = 1  # the flag of a function's code; a class's body lacks it
_NAMES_ONLY = ("getattr", "setattr", "delattr")
_FORMATS = ("format", "format_map", "vformat", "get_field")
_TEXTS = ("__name__", "__qualname__", "__module__", "__doc__")
_HARMLESS = frozenset(("describe", "special", "plain", "await", "signature"))


def run_tests(tests: str, reading: int, writing: int) -> None:
    """Run tests of a program that another process serves; they pass where nothing is raised.

    Raises:
        PeerLost: the program's process ended, or sent what is no message.
        BaseException: what the tests raise.
    """
    peer = Peer(reading, writing, strict=True, may=_may)
    namespace = Namespace(peer)
    sys.modules["answer"] = _Answer("answer", namespace)
    sys.modules[_MODULE] = types.ModuleType(_MODULE)
    code = compile(tests, "<tests>", "exec")
    peer.named = frozenset(name for inner in _codes(code) for name in inner.co_names) - {"AssertionError"}
    peer.stops = "StopIteration" in peer.named
    namespace.bind_in_classes(code)
    exec(code, namespace)
    if peer.lost:
        raise PeerLost(peer.lost)
    if peer.failed is not None:
        raise peer.failed


class Namespace(dict[str, object]):
    """The tests' globals: a name that is not there is asked of the program."""

    def __init__(self, peer: Peer) -> None:
        super().__init__(__name__=_MODULE, __builtins__=builtins)
        self._peer = peer
        self.of_program = frozenset(map(str, peer.request("names")))

    def __missing__(self, name: str) -> Any:
        if name in vars(builtins):
            raise KeyError(name)
        value = self.ask(name)
        if isinstance(value, type | types.ModuleType) or callable(value):
            self[name] = value  # what is no function or class may become another value
        return value

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self.of_program

    def get(self, name: str, default: Any = None) -> Any:
        """Return a name's value, the program's included."""
        try:
            return self[name]
        except KeyError:
            return default

    def ask(self, name: str) -> Any:
        """Return the program's value of a name; ``KeyError`` where it has none."""
        return self._peer.request("global", name)

    def importable(self) -> list[str]:
        """Return what ``import *`` takes from the program: nothing that Python or the tests have by that name."""
        public = (name for name in self.of_program if not name.startswith("_"))
        return sorted(name for name in public if name not in vars(builtins) and not dict.__contains__(self, name))

    def bind_in_classes(self, code: types.CodeType) -> None:
        """Fetch the program's names that bodies of classes use: Python looks for those in a plain way only."""
        for inner in _codes(code):
            if inner is not code and not inner.co_flags & _OPTIMIZED:
                for name in self.of_program.intersection(inner.co_names) - set(vars(builtins)) - set(self):
                    self[name] = self.ask(name)


class _Answer(types.ModuleType):
    """The program as a module to import from."""

    def __init__(self, name: str, namespace: Namespace) -> None:
        super().__init__(name)
        self._namespace = namespace

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":
            return self._namespace.importable()
        try:
            return self._namespace.ask(name)
        except KeyError:
            raise AttributeError(f"the program has no {name}") from None


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _own_classes(kind: type) -> Iterator[type]:
    return (part for part in kind.__mro__ if part.__module__ == _MODULE)


def _may(function: str, arguments: list[Any]) -> bool:
    """Whether the program may ask this: to use what the tests lent it, and public attributes of their own classes."""
    if function != "special" and mirrors.number_of(arguments[0]) is not None:
        return False  # the program's own, of which it might have this side's Python ask more
    if function in _NAMES_ONLY:
        item, name = arguments[0], arguments[1]
        if function == "getattr" and name in _TEXTS:
            return isinstance(getattr(item, name, None), str | None)
        kind = item if isinstance(item, type) else type(item)
        public = type(name) is str and not name.startswith("_")
        reads_attributes = name in _FORMATS and not any(name in vars(part) for part in _own_classes(kind))
        shown = function == "getattr" and not isinstance(item, type) and names.is_lent_kind(kind)
        return public and not reads_attributes and (shown or vars(kind).get("__module__") == _MODULE)
    return function in _HARMLESS
