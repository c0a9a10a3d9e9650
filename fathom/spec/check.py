"""Small checks that specs share; each raises ``SpecError`` naming the field, the value and the remedy."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence

from fathom.errors import SpecError

DAY = 86_400
NAME_BYTES = 100
"""A name may have so many bytes of UTF-8: files are called by it, with endings of their own."""
_DEVICE = re.compile(r"con|prn|aux|nul|com[0-9]|lpt[0-9]", re.IGNORECASE)
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f") | frozenset(
    chr(code) for code in (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
)
"""Letters and marks that show nothing."""


def positive(field: str, value: int | float) -> None:
    """Require a finite number above zero."""
    if not _finite(value) or value <= 0:
        raise SpecError(field, f"must be above 0, got {_shown(value)}", "give a positive number", alone=True)


def count(field: str, value: int | float, most: int, *, least: int = 1) -> None:
    """Require 1 or, with ``least`` 0, 0 to ``most`` of something that is made, looped over or added up."""
    positive(field, value) if least == 1 else not_negative(field, value)
    if value > most:
        raise SpecError(field, f"{value} is beyond {most}, the largest allowed", f"give at most {most}", alone=True)


def seconds(field: str, value: float) -> None:
    """Require a time limit above zero and of at most a day, which every timer of a system can count."""
    positive(field, value)
    if value > DAY:
        raise SpecError(field, f"{value:g} s are more than a day", f"give {DAY} or less", alone=True)


def not_negative(field: str, value: int | float) -> None:
    """Require a finite number of zero or more."""
    if not _finite(value) or value < 0:
        raise SpecError(field, f"must be 0 or more, got {_shown(value)}", "give 0 or a positive number", alone=True)


def fraction(field: str, value: float, *, above: float = 0.0, below: float = 1.0) -> None:
    """Require ``above <= value <= below``."""
    if not _finite(value) or not above <= value <= below:
        raise SpecError(
            field,
            f"must lie between {above:g} and {below:g}, got {_shown(value)}",
            "give a number in that range",
            alone=True,
        )


def one_of(field: str, value: str, choices: Collection[str]) -> None:
    """Require one of a closed set of words."""
    if value not in choices:
        raise SpecError(field, f"unknown value {value!r}", f"use one of {', '.join(sorted(choices))}", alone=True)


def not_empty(field: str, given: Sequence[object], what: str) -> None:
    """Require a list with something in it; ``what`` says what is given at least."""
    if not given:
        raise SpecError(field, "is empty", f"give at least {what}", alone=True)


def multiple_of(field: str, value: int, divisor: int, *, why: str) -> None:
    """Require ``value`` to be a multiple of ``divisor``; ``why`` names what needs it."""
    if divisor <= 0 or value % divisor:
        raise SpecError(field, f"{value} is not a multiple of {divisor} ({why})", f"choose a multiple of {divisor}")


def sha256(field: str, value: str) -> None:
    """Require a SHA-256 as 64 lower-case hexadecimal digits."""
    if len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise SpecError(field, f"{value[:80]!r} is not a SHA-256", "give 64 lower-case hexadecimal digits", alone=True)


def plain_name(field: str, name: str, *, dots: bool = False) -> None:
    """Require a name that may become a part of a path on every system, and looks like no other.

    Letters, marks and decimal digits of any script, - and _, in the compatibility form that equal-looking names share
    (NFKC), at most ``NAME_BYTES`` bytes of UTF-8, and no device of Windows. ``dots`` allows dots within.
    """
    problem = _not_plain(name, dots=dots)
    if problem is not None:
        signs = "-, _ and dots within" if dots else "- and _"
        raise SpecError(field, f"{name!r} is not a plain name: {problem}", f"use letters, digits, {signs}", alone=True)


def plain_stem(text: str, default: str) -> str:
    """Return the plain name that is nearest to a text, a file's name for one; ``default`` where nothing is left."""
    letters = "".join(letter if _is_letter(letter) else " " for letter in unicodedata.normalize("NFKC", text))
    name = "-".join(letters.split()).encode()[: NAME_BYTES - 10].decode(errors="ignore").strip("-")
    return default if _not_plain(name) is not None else name


def distinct_names(field: str, names: Iterable[str], *, what: str) -> None:
    """Require names that differ by more than case, which not every file system tells apart."""
    seen: dict[str, str] = {}
    for name in names:
        before = seen.get(name.casefold())
        if before is not None:
            alike = f"the name {name!r} is used twice"
            problem = alike if before == name else f"the names {before!r} and {name!r} differ in case alone"
            raise SpecError(field, problem, f"give every {what} its own name")
        seen[name.casefold()] = name


def _not_plain(name: str, *, dots: bool = False) -> str | None:
    """Return why a name is not plain."""
    if not name:
        return "it is empty"
    if len(name.encode(errors="surrogatepass")) > NAME_BYTES:
        return f"it is longer than {NAME_BYTES} bytes"
    if unicodedata.normalize("NFKC", name) != name:
        return f"it is written otherwise than its normal form {unicodedata.normalize('NFKC', name)!r}"
    wrong = next((letter for letter in name if not (_is_letter(letter) or (dots and letter == "."))), None)
    if wrong is not None:
        return f"it has {wrong!r}"
    if name[0] == "." or name[-1] == ".":
        return "a dot begins or ends it"
    return "it is a device of Windows" if _DEVICE.fullmatch(name.partition(".")[0]) else None


def _is_letter(letter: str) -> bool:
    return letter == "-" or (f"_{letter}".isidentifier() and letter not in _INVISIBLE)


def _finite(value: int | float) -> bool:
    """Whether a value is a number and finite; whole numbers may be larger than any float."""
    try:
        return isinstance(value, int) or math.isfinite(value)
    except TypeError:
        return False


def _shown(value: object) -> str:
    return f"the text {value!r:.40}" if isinstance(value, str) else str(value)
