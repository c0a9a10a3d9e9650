"""MinHash signatures of many texts at once, in numpy.

Legend: n documents, s shingles of all of them, p permutations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_BLOCK = 1 << 15


class Signer:
    """Computes MinHash signatures over the character shingles of texts (Broder 1997).

    Two texts' signatures agree in a fraction of places that estimates the Jaccard similarity of their shingle sets,
    with a standard deviation of at most 0.5 / sqrt(permutations). Always the same for the same texts.
    """

    def __init__(self, *, permutations: int, shingle_chars: int) -> None:
        generator = np.random.Generator(np.random.Philox(key=20240507))
        self._shingle_chars = shingle_chars
        self._multiply_p = generator.integers(0, 1 << 32, permutations, dtype=np.uint32) | np.uint32(1)
        self._add_p = generator.integers(0, 1 << 32, permutations, dtype=np.uint32)

    def sign(self, texts: Sequence[str]) -> NDArray[np.uint32]:
        """Return signatures (n, p). A text shorter than a shingle counts as one shingle of what it has."""
        if not texts:
            return np.empty((0, len(self._add_p)), dtype=np.uint32)
        width = self._shingle_chars
        padded = [text if len(text) >= width else text + "\0" * (width - len(text)) for text in texts]
        lengths_n = np.array([len(text) for text in padded])
        codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype="<u4")
        rolled = _windows(codes, width)
        ends_n = np.cumsum(lengths_n)
        starts_n = ends_n - lengths_n
        # the last width - 1 windows of a document run into the next one: repeat its last whole window instead
        place = np.arange(len(codes))
        last = np.repeat(ends_n - width, lengths_n)
        hashes_s = rolled[np.minimum(place, last)]
        return self._minima(hashes_s, starts_n)

    def _minima(self, hashes_s: NDArray[np.uint32], starts_n: NDArray[np.int64]) -> NDArray[np.uint32]:
        minima_pn = np.full((len(self._add_p), len(starts_n)), np.iinfo(np.uint32).max, dtype=np.uint32)
        buffer = np.empty(_BLOCK, dtype=np.uint32)
        for begin in range(0, len(hashes_s), _BLOCK):  # blocks stay in the processor's cache over all permutations
            block = hashes_s[begin : begin + _BLOCK]
            first = int(np.searchsorted(starts_n, begin, side="right")) - 1
            beyond = int(np.searchsorted(starts_n, begin + len(block), side="left"))
            cuts = np.maximum(starts_n[first:beyond] - begin, 0)
            permuted = buffer[: len(block)]
            for p, (multiply, add) in enumerate(zip(self._multiply_p, self._add_p, strict=True)):
                np.multiply(block, multiply, out=permuted)
                np.add(permuted, add, out=permuted)
                row = minima_pn[p, first:beyond]
                np.minimum(row, np.minimum.reduceat(permuted, cuts), out=row)
        return np.ascontiguousarray(minima_pn.T)


def _windows(codes: NDArray[np.uint32], width: int) -> NDArray[np.uint32]:
    """Hash every window of ``width`` codes, by doubling: windows of 2k from two windows of k."""
    size = codes.astype(np.uint64)
    size = (size + np.uint64(1)) * _MIX
    size ^= size >> np.uint64(29)
    total: NDArray[np.uint64] | None = None
    covered, power, span = 0, _BASE, 1
    while True:
        if width & span:
            total = size.copy() if total is None else _joined(total, size, covered, power)
            covered += span
        if covered == width:
            break
        size = _joined(size, size, span, power)
        with np.errstate(over="ignore"):
            power = power * power
        span *= 2
    assert total is not None
    total = total[: len(codes) - width + 1]
    total ^= total >> np.uint64(32)
    total *= _MIX
    return (total >> np.uint64(32)).astype(np.uint32)


def _joined(left: NDArray[np.uint64], right: NDArray[np.uint64], offset: int, power: np.uint64) -> NDArray[np.uint64]:
    result: NDArray[np.uint64] = left[: len(right) - offset] * power
    result += right[offset : offset + len(result)]
    return result
