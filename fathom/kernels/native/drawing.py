"""Draws the next tokens from rows of logits on a CPU (``csrc/draw.h``): without copies, and with no tensor a row."""

from __future__ import annotations

from ctypes import Array, Structure, addressof, c_double, c_int32, c_int64, c_uint64, c_void_p

import torch
from torch import Tensor

from fathom.kernels.native import library

NOT_FINITE, NOTHING_ALLOWED = -1, -2
_ALIGNMENT = 64


class DrawRow(Structure):
    """``fathom_draw_row``: one row's logits and how it draws."""

    _fields_ = (
        *((name, c_void_p) for name in ("logits", "adjusted", "allowed")),
        ("seed", c_uint64),
        ("position", c_int64),
        *((name, c_double) for name in ("temperature", "top_p", "min_p")),
        *((name, c_int32) for name in ("top_k", "alternatives")),
    )


class RowDrawer:
    """Buffers for drawing from a vocabulary, kept from step to step; for one thread at a time.

    The ids ``unused_ids_N`` are never drawn nor named as alternatives.
    """

    def __init__(self, vocab: int, unused_ids_N: Tensor | None = None, pool: library.ThreadPool | None = None) -> None:
        self._library, self._pool, self._vocab = library.library(), pool, vocab
        self._unused_N = None if unused_ids_N is None else unused_ids_N.to("cpu", torch.int32)
        threads = 1 if pool is None else pool.threads
        size = self._library.fathom_draw_scratch(vocab)
        self._scratch = torch.empty(threads * size + _ALIGNMENT, dtype=torch.uint8)
        self._rows = (DrawRow * 0)()
        self._ids, self._logprobs = (c_int32 * 0)(), (c_double * 0)()

    def rows(self, count: int) -> Array[DrawRow]:
        """Return rows to fill in; at least ``count``."""
        if len(self._rows) < count:
            self._rows = (DrawRow * count)()
        return self._rows

    def draw(self, count: int, alternatives: int) -> tuple[list[int], list[float]]:
        """Draw for the first ``count`` rows that were filled in.

        Returns the ids and their log-probabilities, ``1 + alternatives`` for each row: the drawn one, or ``NOT_FINITE``
        or ``NOTHING_ALLOWED``; then the likeliest, best first, -1 where there are no more.
        """
        stride = 1 + alternatives
        if len(self._ids) < count * stride:
            self._ids, self._logprobs = (c_int32 * (count * stride))(), (c_double * (count * stride))()
        unused_N, scratch = self._unused_N, self._scratch.data_ptr()
        library.check(
            self._library.fathom_draw(
                None if self._pool is None else self._pool.pointer,
                addressof(self._rows),
                count,
                self._vocab,
                None if unused_N is None else unused_N.data_ptr(),
                0 if unused_N is None else len(unused_N),
                stride,
                addressof(self._ids),
                addressof(self._logprobs),
                scratch + -scratch % _ALIGNMENT,
            )
        )
        return self._ids[: count * stride], self._logprobs[: count * stride]


def all_finite(values: Tensor) -> bool:
    """Whether a contiguous float32 tensor on the CPU holds neither infinity nor NaN."""
    return bool(library.library().fathom_all_finite(values.data_ptr(), values.numel()))
