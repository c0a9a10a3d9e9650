"""Stand-ins for the other process's objects and classes.

A class of the other side becomes a class here, with the same name, bases and special methods, so that ``isinstance``
and ``except`` work; what is done to its objects is asked of the other side. On the tests' side (``strict``) one thing
is not: how an object of the program compares with a plain value. It equals none, unless its class derives from a plain
type; then the plain value it holds is compared, here. An operation with a plain value may give another object but no
plain value, and what it gave, and what that gives in turn, is no number: ``abs(f(x) - 0.5) < 0.1`` cannot be answered
without knowing 0.5. The plain value of an object whose base is immutable is asked for once.
Standard library only: sandboxed processes run this file as it is.
"""

from __future__ import annotations

import types
from collections.abc import Callable

from fathom.posttrain.verdicts import names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Connection(Protocol):
        """What a stand-in needs of the connection to its object's process; ``Peer`` has it."""

        strict: bool
        named: frozenset[str]

        def request(self, function: str, /, *arguments: Any, **named: Any) -> Any:
            """Have the other process apply a function."""

        def fail(self, why: str) -> Any:
            """End the connection."""


_STANDARD_KINDS = {
    kind.__name__: kind
    for kind in (
        types.FunctionType,
        types.BuiltinFunctionType,
        types.MethodType,
        types.GeneratorType,
        types.CoroutineType,
        types.AsyncGeneratorType,
        types.ModuleType,
    )
}
_MADE = object()
_NO_VALUE = "what an operation of an object of the program and a plain value gave is no plain value"
_HELD = ("__hash__", "__bool__", "__len__")
_NUMBER_LIKE = """__abs__ __round__ __len__ __bool__ __int__ __float__ __complex__ __index__ __iter__ __next__ __floor__
    __ceil__ __trunc__"""
_NUMERIC = frozenset(_NUMBER_LIKE.split())
_OBJECTS_AGAIN = frozenset(("__neg__", "__pos__", "__invert__", "__reversed__", "__copy__", "__deepcopy__"))
_IMMUTABLE = (int, float, complex, str, bytes, tuple, frozenset)
_EXTENDING = ("__iadd__", "__ior__")


class Reference:
    """An object of the other side of which nothing but the number is known."""

    def __init__(self, number: int) -> None:
        self.number = number


class MirrorClass(type):
    """The class of the classes that stand for the other side's."""

    _mirror_peer: Connection
    _mirror_number: int
    _mirror_base: type | None

    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any], made: object = None) -> MirrorClass:
        """Make a class; only ``make_class`` may."""
        if made is not _MADE:
            raise TypeError(f"{bases[0].__name__} is a class of the program, from which the tests cannot derive one")
        return super().__new__(cls, name, bases, body)

    def __init__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any], made: object = None) -> None:
        super().__init__(name, bases, body)

    def __call__(cls, /, *arguments: Any, **named: Any) -> Any:
        """Make an object of the other side's."""
        return cls._mirror_peer.request("special", "__call__", cls, *arguments, **named)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_mirror"):
            raise AttributeError(name)
        return cls._mirror_peer.request("getattr", cls, name)

    def __setattr__(cls, name: str, value: Any) -> None:
        cls._mirror_peer.request("setattr", cls, name, value)

    def __delattr__(cls, name: str) -> None:
        cls._mirror_peer.request("delattr", cls, name)

    def __bool__(cls) -> bool:
        return True

    def __len__(cls) -> int:
        return int(cls._mirror_peer.request("special", "__len__", cls))

    def __iter__(cls) -> Any:
        return cls._mirror_peer.request("special", "__iter__", cls)

    def __getitem__(cls, key: Any) -> Any:
        return cls._mirror_peer.request("special", "__getitem__", cls, key)

    def __contains__(cls, item: Any) -> bool:
        return any(part is item or part == item for part in cls)


class Mirror(metaclass=MirrorClass, made=_MADE):
    """What every stand-in has: attributes are the other side's."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        return _peer(self).request("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(self, BaseException) and name.startswith("__"):
            object.__setattr__(self, name, value)  # tracebacks, causes and notes are this side's
        else:
            _peer(self).request("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        _peer(self).request("delattr", self, name)


class MirrorObject(Mirror, made=_MADE):
    """A stand-in of an object that is no exception."""

    __slots__ = ("_mirror_derived", "_mirror_number", "_mirror_plain")

    def __bool__(self: Any) -> bool:
        if _is_derived(self):
            raise TypeError(_NO_VALUE)
        return len(self) > 0 if any("__len__" in vars(part) for part in type(self).__mro__) else True

    def __copy__(self) -> Any:
        return _unary(_peer(self), "__copy__", self)

    def __deepcopy__(self, memo: Any) -> Any:
        return _unary(_peer(self), "__deepcopy__", self)


def number_of(item: Any) -> int | None:
    """The other side's number of what stands for an object or a class of it; None of anything else."""
    kind = type(item)
    if kind is Reference:
        return int(item.number)
    if kind is MirrorClass:
        number = type.__getattribute__(item, "__dict__").get("_mirror_class")
        return None if number is None else int(number)
    return int(object.__getattribute__(item, "_mirror_number")) if type(kind) is MirrorClass else None


def make_class(
    peer: Connection,
    number: int,
    name: str,
    doc: Any,
    bases: list[Any],
    specials: list[str],
    base: type | None,
    kind: str,
) -> Any:
    """Make the class that stands for one of the other side's, from its description."""
    if not all(isinstance(part, type) for part in bases) or (base is not None and base not in names.PLAIN_BASES):
        raise TypeError("no description of a class")
    raises = any(issubclass(part, BaseException) for part in bases)
    if raises and base is not None:
        raise TypeError("an exception derives from no plain type")
    wanted = [part for part in bases if type(part) is MirrorClass or issubclass(part, BaseException)]
    body: dict[str, Any] = {"_mirror_class": number, "_mirror_peer": peer, "_mirror_base": base, "__slots__": ()}
    body |= {"__module__": "answer", "__doc__": doc}
    shown = base or _STANDARD_KINDS.get(kind)
    if shown is not None:
        body["__class__"] = property(lambda self: shown)
    if kind in ("function", "method", "builtin_function_or_method"):
        body["__signature__"] = property(_signature)
        body["__doc__"] = property(lambda self: peer.request("getattr", self, "__doc__"))
    for special in specials:
        if special == "-__hash__":
            body["__hash__"] = None
        elif special in names.SPECIAL and not (raises and special in ("__str__", "__repr__")):
            body[special] = _special_method(special)
    if "__eq__" in body:
        body.setdefault("__hash__", object.__hash__)
    if raises:
        del body["__slots__"]
        body["__str__"] = lambda self: self._mirror_text
    root = Mirror if raises else MirrorObject
    rooted = wanted if any(type(part) is MirrorClass for part in wanted) else [root, *wanted]
    for attempt in (rooted, rooted[:2], [root]):
        ordered = tuple(attempt)
        try:
            return MirrorClass(str(name), ordered, body, made=_MADE)
        except TypeError:  # bases of the standard library that are not here have left an order that cannot be kept
            continue
    raise TypeError("no class can be made of its description")


def make_object(kind: Any, number: int, parts: list[Any]) -> Any:
    """Make the stand-in of an object; ``parts`` are the text and the arguments of an exception."""
    if type(kind) is not MirrorClass:
        raise TypeError("an object of no class")
    if issubclass(kind, BaseException):
        text, *arguments = parts
        error = kind.__new__(kind, *arguments)
        for name, value in (("args", tuple(arguments)), ("_mirror_number", number), ("_mirror_text", str(text))):
            object.__setattr__(error, name, value)
        return error
    made = object.__new__(kind)
    object.__setattr__(made, "_mirror_number", number)
    object.__setattr__(made, "_mirror_derived", False)
    object.__setattr__(made, "_mirror_plain", None)
    if made.__class__ is types.CoroutineType:
        return _awaited(made)
    return made


def standard_kind(kind: type) -> str:
    """The name of a type of Python's own that objects are asked about, such as ``function``; empty for others."""
    if kind.__name__ == "_lru_cache_wrapper":
        return "function"
    return str(kind.__name__) if _STANDARD_KINDS.get(kind.__name__) is kind else ""


def parameters_of(item: Any) -> list[tuple[Any, ...]]:
    """Name, kind, and default of each parameter of a function."""
    import inspect

    found = inspect.signature(item).parameters.values()
    return [(p.name, int(p.kind), p.default is not p.empty, None if p.default is p.empty else p.default) for p in found]


def _signature(self: Any) -> Any:
    import inspect

    parts = [
        inspect.Parameter(name, inspect._ParameterKind(kind), default=default if has else inspect.Parameter.empty)
        for name, kind, has, default in _peer(self).request("signature", self)
    ]
    return inspect.Signature(parts)


async def _awaited(mirror: Any) -> Any:
    return _peer(mirror).request("await", mirror)


def _peer(item: Any) -> Connection:
    peer: Connection = type(item)._mirror_peer
    return peer


def _is_object(item: Any) -> bool:
    return type(type(item)) is MirrorClass


def _is_derived(item: Any) -> bool:
    """Whether an operation with a plain value, which told the program that value, gave this object."""
    return _is_object(item) and not isinstance(item, BaseException) and item._mirror_derived


def _derived(result: Any) -> Any:
    """Mark what such an operation gave, which must be an object."""
    if not _is_object(result) or isinstance(result, BaseException):
        raise TypeError("an operation of an object of the program and a plain value gave a plain value")
    object.__setattr__(result, "_mirror_derived", True)
    return result


def _plain(item: Any) -> Any:
    """What an object of a class derived from a plain type holds; anything else as it is."""
    base = type(item)._mirror_base if _is_object(item) else None
    if base is None:
        return item
    if item._mirror_derived:
        raise TypeError(_NO_VALUE)
    if item._mirror_plain is not None:
        return item._mirror_plain
    copied = _peer(item).request("plain", item)
    if type(copied) is not base:
        _peer(item).fail("sent a plain value of another type")
    if base in _IMMUTABLE:
        object.__setattr__(item, "_mirror_plain", copied)
    return copied


def _special_method(name: str) -> Callable[..., Any]:
    def binary(self: Any, other: Any) -> Any:
        return _combined(_peer(self), name, self, other)

    def reflected(self: Any, other: Any) -> Any:
        return _combined(_peer(self), f"__{name[3:]}", other, self)

    def changed(self: Any, other: Any) -> Any:
        return _changed(_peer(self), name, self, other)

    def compared(self: Any, other: Any) -> Any:
        return _compared(_peer(self), name, self, other)

    def unary(self: Any, /, *arguments: Any, **named: Any) -> Any:
        return _unary(_peer(self), name, self, *arguments, **named)

    if name == "__await__":
        return lambda self: _awaited(self).__await__()
    if name in names.BINARY:
        return binary
    if name in names.IN_PLACE:
        return changed
    if name in names.COMPARISONS:
        return compared
    return reflected if f"__{name[3:]}" in names.BINARY else unary


def _combined(peer: Connection, name: str, left: Any, right: Any) -> Any:
    if not peer.strict:
        return peer.request("special", name, left, right)
    left, right = _plain(left), _plain(right)
    if not (_is_object(left) or _is_object(right)):
        return names.BINARY[name](left, right)
    knows = not (_is_object(left) and _is_object(right)) or _is_derived(left) or _is_derived(right)
    result = peer.request("special", name, left, right)
    return _derived(result) if knows else result


def _changed(peer: Connection, name: str, item: Any, other: Any) -> Any:
    """An operation in place. One that extends an object by a container leaves it what it was: a container."""
    if not peer.strict:
        return peer.request("special", name, item, other)
    if type(item)._mirror_base in _IMMUTABLE:
        return NotImplemented
    knows = _is_derived(item) or _is_derived(other) or not (_is_object(other) or _extends(name, other))
    result = peer.request("special", name, item, other)
    if not _is_object(result):
        raise TypeError(f"{name} of an object of the program gave a plain value")
    return _derived(result) if knows else result


def _extends(name: str, other: Any) -> bool:
    return name in _EXTENDING and isinstance(other, list | tuple | dict | set | frozenset | str)


def _compared(peer: Connection, name: str, item: Any, other: Any) -> Any:
    if not peer.strict:
        return peer.request("special", name, item, other)
    item, other = _plain(item), _plain(other)
    if not _is_object(item):
        return NotImplemented if _is_object(other) else names.COMPARISONS[name](item, other)
    return peer.request("special", name, item, other) if _is_object(other) else NotImplemented


def _may_suppress(peer: Connection, kind: Any) -> bool:
    """Whether a ``with`` of the program may end this error: its own, and what the tests name but a failed check."""
    return not peer.strict or kind is None or type(kind) is MirrorClass or kind.__name__ in peer.named


async def _suppressing(awaitable: Any, may: bool) -> Any:
    return (await awaitable) and may


def _unary(peer: Connection, name: str, item: Any, /, *arguments: Any, **named: Any) -> Any:
    if not peer.strict:
        return peer.request("special", name, item, *arguments, **named)
    if name == "__contains__" and not _is_object(arguments[0]):
        held = _plain(item)
        return arguments[0] in held if not _is_object(held) else any(part == arguments[0] for part in item)
    if name in _HELD and type(item)._mirror_base is not None:
        return names.UNARY[name](_plain(item))
    if name in ("__exit__", "__aexit__"):
        result = peer.request("special", name, item, *arguments, **named)
        may = _may_suppress(peer, arguments[0])
        return (result and may) if name == "__exit__" else _suppressing(result, may)
    if not _is_derived(item):
        return peer.request("special", name, item, *arguments, **named)
    if name in _NUMERIC:
        raise TypeError(_NO_VALUE)
    result = peer.request("special", name, item, *arguments, **named)
    return _derived(result) if name in _OBJECTS_AGAIN else result
