"""The routed experts of one request's tokens, in every mixture-of-experts layer."""

from __future__ import annotations

import torch
from torch import Tensor

_UNKNOWN = -1
_INITIAL_ROWS = 64  # doubled when they are full


class RoutedExpertsRecorder:
    """A buffer that grows with the request; rows that were not computed for it, such as of shared pages, are -1."""

    def __init__(self, layers: int, chosen: int) -> None:
        self._rows = torch.full((_INITIAL_ROWS, layers, chosen), _UNKNOWN, dtype=torch.int16, device="cpu")
        self._end = 0

    def write(self, start: int, routes_NLK: Tensor) -> None:
        """Write the experts of tokens ``start`` and following, replacing earlier ones."""
        end = start + len(routes_NLK)
        self._end = max(self._end, end)
        while end > len(self._rows):
            self._rows = torch.cat((self._rows, torch.full_like(self._rows, _UNKNOWN)))
        self._rows[start:end] = routes_NLK

    def first(self, tokens: int) -> Tensor:
        """Return the rows (N, L, K) of the first ``tokens`` tokens, up to the last that was run: a copy, int16."""
        return self._rows[: min(tokens, self._end)].clone()
