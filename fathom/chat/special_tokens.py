"""Special tokens in rendered text: which of them the template wrote, and which a message spells.

Text of a message is marked by a guard, a private-use character after the first character of what could become a
special token: no template can then complete it, whatever it joins, and removing the guards gives the text back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from fathom.errors import DataError

MAX_NESTING = 64
GUARDS = tuple(map(chr, range(0xF8F0, 0xF8F8)))
Change = Callable[[str], str]


class SpecialTokens:
    """The special tokens of a vocabulary as patterns; use ``special_tokens`` to get one."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = sorted(names, key=lambda name: (-len(name), name))
        self.starts = "".join(sorted({name[0] for name in names}))
        self._start = re.compile(f"[{re.escape(self.starts)}]" if names else "(?!)")

    def holds_start(self, text: str) -> bool:
        """Whether a text holds a character that any special token starts with."""
        return self._start.search(text) is not None

    def within(self, text: str) -> set[str]:
        """Return the special tokens that a text spells, overlapping ones included."""
        return {name for name in self._names if name in text} if self.holds_start(text) else set()

    def guarding(self, guard: str, level: int | None, exempt: frozenset[str] = frozenset()) -> Change:
        """Return a function that puts a guard into text where a special token may begin.

        That is after every character that starts one (level 1), or where at least ``level`` of its characters stand
        (None: all of them), or fewer at the end of the text. Whole tokens of ``exempt`` get none.
        """
        pattern = _guard_pattern(tuple(self._names), level, exempt)
        return lambda text: pattern.sub(lambda match: match[0] + guard, text)

    def guarding_only(self, guard: str, name: str) -> Change:
        """Return a function that puts a guard into one special token only."""
        return lambda text: text.replace(name, name[0] + guard + name[1:])


@lru_cache(maxsize=64)
def _guard_pattern(names: tuple[str, ...], level: int | None, exempt: frozenset[str]) -> re.Pattern[str]:
    """Return a pattern of single characters; at level 1, a letter counts only where a whole token begins with it."""
    if not names:
        return re.compile("(?!)")
    starts = {name[0] for name in names}
    beginnings = {name[: level or len(name)] for name in names}
    if level == 1:
        beginnings = {name if name[0].isalnum() else name[0] for name in names}
    shortest = {name: 4 if name[0].isalnum() else 1 for name in names}
    trailing = {name[:end] for name in names for end in range(shortest[name], len(name))}
    kept = f"(?!{_any(exempt)})" if exempt else ""
    ends = rf"|(?:{_any(trailing)})\Z" if trailing else ""
    if level == 1 and not any(start.isalnum() for start in starts):
        return re.compile(f"{kept}[{re.escape(''.join(sorted(starts)))}]")
    return re.compile(rf"(?=[{re.escape(''.join(sorted(starts)))}]){kept}(?=(?:{_any(beginnings)}){ends}).", re.DOTALL)


def _any(names: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(names, key=lambda name: (-len(name), name))))


@lru_cache(maxsize=16)
def special_tokens(names: frozenset[str]) -> SpecialTokens:
    """Return the patterns of special tokens, compiled once for each vocabulary."""
    return SpecialTokens(names)


def map_strings(value: Any, change: Change) -> Any:
    """Apply a function to every text in nested lists and mappings, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {map_strings(key, change): map_strings(part, change) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [map_strings(item, change) for item in value]
    return value


def strings(value: Any) -> Iterator[str]:
    """Yield every text in nested lists and mappings, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from strings(key)
            yield from strings(part)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item)


def check_nesting(value: Any, depth: int = 0) -> None:
    """Refuse what is nested beyond reason; ``DataError`` names the limit."""
    if depth > MAX_NESTING:
        raise DataError(f"messages: nested deeper than {MAX_NESTING}, in tools or calls; flatten them")
    children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for child in children:
        check_nesting(child, depth + 1)
