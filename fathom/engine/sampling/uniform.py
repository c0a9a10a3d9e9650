"""Random numbers without state: each is a hash of a seed and counters."""

from __future__ import annotations

import secrets

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio, the stride of splitmix64


def uniform(seed: int, *counters: int) -> float:
    """Return a number in [0, 1) with 53 random bits that depends on the seed and the counters alone.

    Each counter is absorbed by one step of splitmix64 (Steele, Lea and Flood 2014).
    """
    state = _mixed(seed & _WORD)
    for counter in counters:
        state = _mixed((state + _GOLDEN * (counter + 1)) & _WORD)
    return (state >> 11) * 2.0**-53


def fresh_seed() -> int:
    """Return a seed from the operating system, for a request that brings none."""
    return secrets.randbits(63)


def _mixed(word: int) -> int:
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)
