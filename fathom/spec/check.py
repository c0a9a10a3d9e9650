"""Small checks that specs share; each raises ``SpecError`` naming the field, the value and the remedy."""

from __future__ import annotations

import math
from collections.abc import Collection

from fathom.errors import SpecError


def positive(field: str, value: int | float) -> None:
    """Require a finite number above zero."""
    if not _finite(value) or value <= 0:
        raise SpecError(field, f"must be above 0, got {value}", "give a positive number")


def count(field: str, value: int, most: int, *, least: int = 1) -> None:
    """Require ``least`` to ``most`` of something that is made or looped over."""
    positive(field, value) if least == 1 else not_negative(field, value)
    if value > most:
        raise SpecError(field, f"{value} is beyond {most}, more than any model has", f"give at most {most}")


def not_negative(field: str, value: int | float) -> None:
    """Require a finite number of zero or more."""
    if not _finite(value) or value < 0:
        raise SpecError(field, f"must be 0 or more, got {value}", "give 0 or a positive number")


def fraction(field: str, value: float, *, above: float = 0.0, below: float = 1.0) -> None:
    """Require ``above <= value <= below``."""
    if not _finite(value) or not above <= value <= below:
        raise SpecError(field, f"must lie between {above:g} and {below:g}, got {value}", "give a number in that range")


def one_of(field: str, value: str, choices: Collection[str]) -> None:
    """Require one of a closed set of words."""
    if value not in choices:
        raise SpecError(field, f"unknown value {value!r}", f"use one of {', '.join(sorted(choices))}")


def multiple_of(field: str, value: int, divisor: int, *, why: str) -> None:
    """Require ``value`` to be a multiple of ``divisor``; ``why`` names what needs it."""
    if divisor <= 0 or value % divisor:
        raise SpecError(field, f"{value} is not a multiple of {divisor} ({why})", f"choose a multiple of {divisor}")


def sha256(field: str, value: str) -> None:
    """Require a SHA-256 as 64 lower-case hexadecimal digits."""
    if len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise SpecError(field, f"{value[:80]!r} is not a SHA-256", "give 64 lower-case hexadecimal digits")


def _finite(value: int | float) -> bool:
    """Whether a number is neither infinite nor none; whole numbers may be larger than any float."""
    return isinstance(value, int) or math.isfinite(value)
