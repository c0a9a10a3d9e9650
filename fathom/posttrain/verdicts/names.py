"""Which objects of the standard library cross by name, and which special methods objects have across the boundary.

Standard library only: sandboxed processes run this file as it is.
"""

from __future__ import annotations

import builtins
import copy
import importlib
import math
import operator
import sys
import types
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SAFE = """abs all any ascii bin bool bytearray bytes callable chr complex dict divmod enumerate filter float format
    frozenset hex int isinstance issubclass iter len list map max min next object oct ord pow range repr reversed round
    set slice sorted str sum tuple zip"""
SAFE_BUILTINS = frozenset(_SAFE.split())
"""What the program may name and have the tests' process use: nothing that reads attributes, files or code."""

SAFE_MODULES = {
    "math": None,
    "cmath": None,
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "collections": ("Counter", "OrderedDict", "defaultdict", "deque"),
}
"""The like of other modules: these names, or all."""

_ERRORS = "binascii csv dataclasses decimal json.decoder re statistics struct zlib"
ERROR_MODULES = frozenset(_ERRORS.split())
"""Modules whose exceptions are the same on both sides; those that end a loop or task (``queue.Empty``) are not."""

_USABLE = """abc array asyncio base64 binascii bisect calendar cmath collections contextlib copy csv dataclasses
    datetime decimal enum fractions functools hashlib heapq inspect io itertools json math numbers operator os pprint
    queue random re statistics string struct sys textwrap threading time typing unicodedata uuid warnings zlib"""
USABLE_MODULES = frozenset(_USABLE.split())
"""Modules that the tests may use because the program imported them; they import their own."""

LENT_KINDS = {
    "io": ("StringIO", "BytesIO"),
    "random": ("Random",),
    "queue": ("Queue",),
}
"""Classes of the standard library whose objects, lent by the tests, show the program their public attributes."""

PLAIN_BASES = (
    int, float, complex, str, bytes, bytearray, tuple, list, dict, set, frozenset,
)  # fmt: skip
"""What an object of a derived class is compared as."""

_COPIES: dict[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    complex: lambda item: complex(complex.real.__get__(item), complex.imag.__get__(item)),
    str: str.__str__,
    bytes: lambda item: bytes(bytes.__iter__(item)),
    bytearray: lambda item: bytearray(bytearray.__iter__(item)),
    tuple: lambda item: tuple(tuple.__iter__(item)),
    list: lambda item: list(list.__iter__(item)),
    dict: lambda item: dict(dict.items(item)),
    set: lambda item: set(set.__iter__(item)),
    frozenset: lambda item: frozenset(frozenset.__iter__(item)),
}

BINARY = {
    f"__{name}__": getattr(operator, f"__{name}__")
    for name in (
        "add",
        "sub",
        "mul",
        "truediv",
        "floordiv",
        "mod",
        "matmul",
        "lshift",
        "rshift",
        "and",
        "or",
        "xor",
        "pow",
    )
} | {"__divmod__": divmod}
IN_PLACE = {
    f"__i{name[2:]}": getattr(operator, f"__i{name[2:]}") for name in BINARY if hasattr(operator, f"__i{name[2:]}")
}
COMPARISONS = {f"__{name}__": getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
UNARY: dict[str, Callable[..., Any]] = {
    "__len__": len,
    "__bool__": bool,
    "__str__": str,
    "__repr__": repr,
    "__hash__": hash,
    "__iter__": iter,
    "__next__": next,
    "__reversed__": reversed,
    "__abs__": abs,
    "__neg__": operator.neg,
    "__pos__": operator.pos,
    "__invert__": operator.invert,
    "__int__": int,
    "__float__": float,
    "__complex__": complex,
    "__index__": operator.index,
    "__bytes__": bytes,
    "__round__": round,
    "__floor__": math.floor,
    "__ceil__": math.ceil,
    "__trunc__": math.trunc,
    "__format__": format,
    "__dir__": dir,
    "__getitem__": operator.getitem,
    "__setitem__": operator.setitem,
    "__delitem__": operator.delitem,
    "__contains__": operator.contains,
    "__copy__": copy.copy,
    "__deepcopy__": lambda item, memo=None: copy.deepcopy(item),
}
BY_CLASS = ("__call__", "__enter__", "__exit__", "__aiter__", "__anext__", "__aenter__", "__aexit__", "__await__")
OPERATIONS: dict[str, Callable[..., Any]] = BINARY | IN_PLACE | COMPARISONS | UNARY
"""Special methods as functions of Python's, which find the method as Python does."""
SPECIAL = (*BINARY, *(f"__r{name[2:]}" for name in BINARY), *IN_PLACE, *COMPARISONS, *UNARY, *BY_CLASS)


def own_specials(kind: type) -> list[str]:
    """The special methods that a class has and ``object`` has not, ``-`` before those it took away."""
    found = []
    defined = {name for part in kind.__mro__ for name in vars(part)}  # a metaclass's are not among them
    for name in SPECIAL:
        method = getattr(kind, name, None)
        if method is None and hasattr(object, name):
            found.append(f"-{name}")
        elif method is not None and method is not getattr(object, name, None) and name in defined:
            found.append(name)
    return found


def plain_base(kind: type) -> type | None:
    """The plain type that a class derives from."""
    return next((base for base in PLAIN_BASES if issubclass(kind, base)), None)


def plain_copy(item: Any) -> Any:
    """An object of a derived class as the plain value it holds, whatever its own methods say."""
    base = plain_base(type(item))
    if base is None:
        raise TypeError(f"{type(item).__name__} derives from no plain type")
    return _COPIES[base](item)


def standard_name(item: Any) -> tuple[str, str] | None:
    """Module and name of a type or function that both sides have: one of ``SAFE_BUILTINS`` or ``SAFE_MODULES``."""
    if isinstance(item, types.ModuleType):
        return None
    name = getattr(item, "__name__", None)
    if type(name) is not str or not isinstance(item, type | types.BuiltinFunctionType):
        return None
    module = item.__module__
    if type(module) is not str or not may_be_named(module, name):
        return None
    home = builtins if module == "builtins" else sys.modules.get(module)
    return (module, name) if getattr(home, name, None) is item else None


def may_be_named(module: str, name: str) -> bool:
    """Whether the other side may refer to an object of the standard library by this name."""
    if module == "builtins":
        kind = getattr(builtins, name, None)
        return name in SAFE_BUILTINS or (isinstance(kind, type) and issubclass(kind, BaseException))
    if module in ERROR_MODULES:
        kind = getattr(sys.modules.get(module) or importlib.import_module(module), name, None)
        if isinstance(kind, type) and issubclass(kind, BaseException):
            return True
    allowed = SAFE_MODULES.get(module, ())
    return not name.startswith("_") and (allowed is None or name in allowed)


def is_lent_kind(kind: type) -> bool:
    """Whether a class is one of ``LENT_KINDS`` or derives from one."""
    found = ((sys.modules.get(module), name) for module, each in LENT_KINDS.items() for name in each)
    return any(getattr(module, name, None) in kind.__mro__ for module, name in found)


def await_here(awaitable: Any) -> Any:
    """Run an awaitable of this process to its end, on a loop that lives as long as the process."""
    import asyncio

    async def whole() -> Any:
        return await awaitable

    if asyncio._get_running_loop() is not None:  # what awaits runs in one already
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, whole()).result()
    if not _LOOPS:
        _LOOPS.append(asyncio.new_event_loop())
    return _LOOPS[0].run_until_complete(whole())


_LOOPS: list[Any] = []
