"""Text that every installation has: the sources of Python's standard library, as bytes."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fathom.data.loader import TokenBatch
from fathom.data.saved_position import saved_count
from fathom.errors import DataError
from fathom.train.step import counter_seed

_HELD_OUT_EVERY = 10
_SEPARATOR = b"\0"


@dataclass(frozen=True, slots=True)
class ByteCorpus:
    """Training and held-out bytes, int64: every tenth file is held out whole."""

    train_N: Tensor
    held_out_N: Tensor


@lru_cache(maxsize=2)
def standard_library(max_bytes: int) -> ByteCorpus:
    """The library's modules in the order of their names, until ``max_bytes`` are read; tests and packages excluded.

    Raises:
        DataError: this Python came without sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    total = 0
    for number, path in enumerate(sorted(root.glob("*.py"))):
        content = path.read_bytes() + _SEPARATOR
        parts[number % _HELD_OUT_EVERY == 0].append(content)
        total += len(content)
        if total >= max_bytes:
            break
    if not all(parts):
        raise DataError(f"{root}: holds no Python sources to learn from; use a Python that ships its library")
    train, held_out = (torch.tensor(list(b"".join(some)), dtype=torch.int64) for some in parts)
    return ByteCorpus(train, held_out)


class RandomWindows:
    """Endless windows at random places; batch n depends on the seed and n only."""

    def __init__(self, text_N: Tensor, length: int, seed: int) -> None:
        if text_N.numel() <= length + 1:
            raise DataError(f"text: {text_N.numel()} bytes hold no window of {length}; use more text")
        self._text_N, self._length, self._seed, self._number = text_N, length, seed, 0

    def next(self, batch_size: int) -> TokenBatch:
        """Return the next batch."""
        generator = torch.Generator().manual_seed(counter_seed(self._seed, self._number))
        self._number += 1
        start_B1 = torch.randint(self._text_N.numel() - self._length, (batch_size, 1), generator=generator)
        tokens_BT1 = self._text_N[start_B1 + torch.arange(self._length + 1)]
        return TokenBatch(tokens_BT1, torch.zeros(batch_size, dtype=torch.int64))

    def state(self) -> dict[str, Any]:
        """Return how many batches were drawn."""
        return {"number": self._number}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on after that many."""
        self._number = saved_count(state, "number")


def even_windows(text_N: Tensor, length: int, count: int) -> Tensor:
    """``count`` windows (count, length + 1) spread evenly over the text."""
    starts_N1 = torch.linspace(0, text_N.numel() - length - 1, count).long()[:, None]
    return text_N[starts_N1 + torch.arange(length + 1)]
