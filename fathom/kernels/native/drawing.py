"""Draws the next tokens from rows of logits on a CPU (``csrc/draw.h``): without copies, and with no tensor a row."""

from __future__ import annotations

from ctypes import Structure, addressof, c_char, c_double, c_int32, c_void_p
from struct import Struct
from typing import NamedTuple

import torch
from torch import Tensor

from fathom.kernels.native import library
from fathom.kernels.native.memory import aligned_bytes

NOT_FINITE, NOTHING_ALLOWED = -1, -2


_ROW = Struct("=QQQ Qq dddii")  # fathom_draw_row: addresses of logits, changes and mask, seed, position, Way
_WORD = (1 << 64) - 1


class Way(NamedTuple):
    """How a row draws; ``top_k`` and ``alternatives`` are at most the vocabulary."""

    temperature: float
    top_p: float
    min_p: float
    top_k: int
    alternatives: int


class ChangeStruct(Structure):
    """``fathom_logit_changes``: penalties, biases and bans of one row; addresses are of int32, biases of float32."""

    _fields_ = (
        *((name, c_void_p) for name in ("ids", "counts", "biases", "banned")),
        *((name, c_int32) for name in ("count", "prompt", "biased", "bans")),
        *((name, c_double) for name in ("repetition", "presence", "frequency")),
    )


class RowDrawer:
    """Buffers for drawing from a vocabulary, kept from step to step; for one thread at a time.

    The ids ``unused_ids_N`` are never drawn nor named as alternatives.
    """

    def __init__(self, vocab: int, unused_ids_N: Tensor | None = None, pool: library.ThreadPool | None = None) -> None:
        found = library.library()
        self._call, self._pool, self._vocab = found.fathom_draw, pool, vocab
        self._unused_N = torch.empty(0, dtype=torch.int32) if unused_ids_N is None else unused_ids_N.int().cpu()
        threads = 1 if pool is None else pool.threads
        self._scratch = aligned_bytes(threads * found.fathom_draw_scratch(vocab))
        self._rows, self._most = (c_char * 0)(), 0
        self._ids, self._logprobs = (c_int32 * 0)(), (c_double * 0)()
        self._point()

    def _point(self) -> None:
        """Keep the addresses of the buffers, which move when they grow."""
        self._given = (None if self._pool is None else self._pool.pointer, addressof(self._rows))
        self._unused = (self._vocab, self._unused_N.data_ptr(), len(self._unused_N))
        self._room = (addressof(self._ids), addressof(self._logprobs), self._scratch.data_ptr())

    def begin(self, count: int) -> None:
        """Make room for so many rows; ``add`` each of them."""
        if len(self._rows) < count * _ROW.size:
            self._rows = (c_char * (count * _ROW.size))()
            self._point()
        self._most = 0

    def add(
        self, index: int, logits: int, seed: int, position: int, way: Way, changes: int = 0, allowed: int = 0
    ) -> None:
        """Say how a row draws; ``logits`` is the address of V floats.

        Random numbers are ``uniform(seed, position, trial)``. ``changes`` is the address of a ``ChangeStruct`` and
        ``allowed`` that of an int32 bitmask of the vocabulary; 0 where there is none.
        """
        _ROW.pack_into(self._rows, index * _ROW.size, logits, changes, allowed, seed & _WORD, position, *way)
        if way.alternatives > self._most:
            self._most = way.alternatives

    def draw(self, count: int) -> tuple[int, list[int], list[float]]:
        """Draw for ``count`` rows.

        Returns how many ids a row has, the ids and their log-probabilities: of each row the drawn one, or
        ``NOT_FINITE`` or ``NOTHING_ALLOWED``; then the likeliest, best first, -1 where there are no more.
        """
        stride = 1 + self._most
        if len(self._ids) < count * stride:
            self._ids, self._logprobs = (c_int32 * (count * stride))(), (c_double * (count * stride))()
            self._point()
        status = self._call(*self._given, count, *self._unused, stride, *self._room)
        if status:
            library.check(status)
        return stride, self._ids[: count * stride], self._logprobs[: count * stride]


def all_finite(values: Tensor) -> bool:
    """Whether a contiguous float32 tensor on the CPU holds neither infinity nor NaN."""
    return bool(library.library().fathom_all_finite(values.data_ptr(), values.numel()))
