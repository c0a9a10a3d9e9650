"""Damage to JSON values: hostile numbers, words and nesting in place of what stood there."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

NUMBERS: Sequence[Any] = (
    *(0, -1, 1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32, 10**9, 10**12, 10**15, 2**53, 2**63 - 1, 2**63),
    *(2**64, -(2**63) - 1, 10**400, 0.5, -0.0, 1e-320, 1e300, 1e15, float("inf"), float("-inf"), float("nan")),
)
WORDS: Sequence[str] = ("", "x", "../../x", "\x1b]0;x\x07", "a\nb", "\ud800", "\u202e", "天", "0", "null", "{}" * 40)


def hostile(rng: random.Random) -> Any:
    """Return a value that few readers expect."""
    return rng.choice(
        (
            lambda: rng.choice(NUMBERS),
            lambda: rng.choice(NUMBERS),
            lambda: rng.choice(WORDS),
            lambda: rng.choice((None, True, False, [], {})),
            lambda: [rng.choice(NUMBERS)] * rng.choice((1, 2, 3, 100)),
            lambda: "a" * rng.choice((100, 10_000)),
            lambda: nested(rng.choice((2, 50, 120))),
            lambda: {"type": "x"},
        )
    )()


def nested(depth: int) -> Any:
    """Return lists within lists."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def damage(value: Any, rng: random.Random) -> Any:
    """Return a copy damaged in one to three places."""
    holder = {"": copy.deepcopy(value)}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(holder))
        container, key = rng.choice(places)
        rng.choice(_WAYS)(container, key, places, rng)
    return holder.get("")


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every container with a key in it; of long lists, some of the keys."""
    found: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        inner = stack.pop()
        if isinstance(inner, dict):
            keys: list[Any] = list(inner)
        elif isinstance(inner, list):
            keys = list(range(len(inner)))
        else:
            continue
        keys = keys if len(keys) <= 40 else keys[:30] + keys[-10:]
        found += [(inner, key) for key in keys]
        stack += [inner[key] for key in keys]
    return found


def _replace(container: Any, key: Any, places: list[Any], rng: random.Random) -> None:
    container[key] = hostile(rng)


def _nudge(container: Any, key: Any, places: list[Any], rng: random.Random) -> None:
    if type(container[key]) in (int, float):
        container[key] = rng.choice((container[key] * 10, container[key] + 1, -container[key], container[key] // 3))
    elif isinstance(container[key], str):
        container[key] = rng.choice((container[key].upper(), container[key] + "\x00", container[key][:-1]))
    else:
        _replace(container, key, places, rng)


def _remove(container: Any, key: Any, places: list[Any], rng: random.Random) -> None:
    if isinstance(container, dict) and key != "":
        del container[key]


def _take_from_elsewhere(container: Any, key: Any, places: list[Any], rng: random.Random) -> None:
    other, place = rng.choice(places)
    if place in other if isinstance(other, dict) else place < len(other):
        container[key] = copy.deepcopy(other[place])


def _repeat(container: Any, key: Any, places: list[Any], rng: random.Random) -> None:
    value = container[key]
    if isinstance(value, list | str) and len(value) < 100_000:
        container[key] = value * rng.choice((2, 10, 40))
    elif isinstance(container, list) and len(container) < 100_000:
        container *= 2


def _add(container: Any, key: Any, places: list[Any], rng: random.Random) -> None:
    if isinstance(container, dict) and "" not in container:
        container[rng.choice(WORDS)] = hostile(rng)


_WAYS: Sequence[Callable[[Any, Any, list[Any], random.Random], None]] = (
    *(_replace, _replace, _replace, _nudge, _nudge),
    *(_remove, _take_from_elsewhere, _repeat, _add),
)
