"""What followed the last time: one request's tokens, indexed by the short runs that occur in them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

SHORTEST, LONGEST = 3, 8
_MOST_COMPARED = 64


class NgramIndex:
    """Finds where the end of ``tokens`` occurred before; ``tokens`` may only grow.

    Runs of ``shortest`` tokens are found by a dictionary, each with its earlier occurrences as a chain, and compared
    up to ``longest`` tokens backwards: each token costs one entry, and no step reads the tokens anew.
    """

    def __init__(self, tokens: Sequence[int], *, shortest: int = SHORTEST, longest: int = LONGEST) -> None:
        self._tokens = tokens
        self._shortest, self._longest = shortest, longest
        self._latest: dict[tuple[int, ...], int] = {}  # a run's tokens -> the index behind its last occurrence
        self._earlier = array("q", [0] * shortest)  # the same of the occurrence before; 0 is none

    def propose(self, count: int) -> list[int]:
        """Return ``count`` tokens that followed the longest run the tokens end with, at its latest occurrence.

        None where no run of at least ``shortest`` tokens occurred before. Where the run is so late that the tokens end
        first, the returned tokens repeat.
        """
        self._index()
        tokens = self._tokens
        behind = self._latest.get(tuple(tokens[-self._shortest :]), 0)
        found, length = 0, 0
        for _ in range(_MOST_COMPARED):
            if not behind or length == self._longest:
                break
            common = self._common(behind)
            if common > length:
                found, length = behind, common
            behind = self._earlier[behind]
        if not found:
            return []
        drafts: list[int] = []
        for index in range(found, found + count):
            drafts.append(tokens[index] if index < len(tokens) else drafts[index - len(tokens)])
        return drafts

    def _index(self) -> None:
        """Take note of every run that some token follows."""
        for behind in range(len(self._earlier), len(self._tokens)):
            run = tuple(self._tokens[behind - self._shortest : behind])
            self._earlier.append(self._latest.get(run, 0))
            self._latest[run] = behind

    def _common(self, behind: int) -> int:
        """Count the tokens before ``behind`` that are also the last ones."""
        tokens, length = self._tokens, self._shortest
        while length < min(self._longest, behind) and tokens[behind - 1 - length] == tokens[-1 - length]:
            length += 1
        return length
