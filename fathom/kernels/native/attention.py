"""Cache pages and attention of the native library: its structs, filled from tensors.

X elements of one token, Y bytes of its row.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Structure, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from fathom.kernels.native import library
from fathom.kernels.native.memory import aligned_bytes
from fathom.plan.cache_rows import QuantizedRow

_FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2}
MAX_SEGMENTS = 2
"""Segments of a quantized row that a structure has room for."""


class Segment(Structure):
    """``fathom_segment``: elements of a quantized row."""

    _fields_ = tuple((name, c_int32) for name in ("width", "largest", "group"))


class Pages(Structure):
    """``fathom_pages``: the rows of one layer and kind. Whoever holds it holds the tensor too."""

    _fields_ = (
        ("rows", c_void_p),
        ("row_bytes", c_int64),
        *((name, c_int32) for name in ("format", "width", "segments")),
        ("segment", Segment * MAX_SEGMENTS),
    )


class Attention(Structure):
    """``fathom_attention``: tokens of one sequence that attend to its pages."""

    _fields_ = (
        *((name, c_void_p) for name in ("keys", "values", "table")),
        *((name, c_int32) for name in ("page_size", "first", "begin", "position", "tokens", "heads", "window")),
        *((name, c_int32) for name in ("key_column", "width", "value_column", "value_width")),
        ("scale", c_float),
        ("q", c_void_p),
        ("q_token", c_int64),
        ("q_head", c_int64),
        ("out", c_void_p),
        ("out_token", c_int64),
        ("out_head", c_int64),
    )


class Prompt(Structure):
    """``fathom_prompt``: many tokens of one sequence, and heads that keys and values are expanded for."""

    _fields_ = (("item", Attention), ("kv_heads", c_int32), ("key_up", c_void_p), ("value_up", c_void_p))


def describe_pages(rows_NX: Tensor, row: QuantizedRow | None = None) -> Pages:
    """Describe rows of a pool: float32 or bfloat16 (N, X), or bytes (N, Y) laid out as ``row`` says."""
    segments = () if row is None else row.segments
    width = rows_NX.shape[1] if row is None else row.width
    held = [Segment(segment.width, segment.largest, segment.group) for segment in segments]
    row_bytes = rows_NX.stride(0) * rows_NX.element_size()
    return Pages(
        rows_NX.data_ptr(), row_bytes, _FORMATS[rows_NX.dtype], width, len(held), (Segment * MAX_SEGMENTS)(*held)
    )


def attention_workspace(threads: int, width: int, value_width: int) -> Tensor:
    """Allocate what ``attend`` needs on so many threads for keys and values up to these widths."""
    size = library.library().fathom_attend_bytes(threads, width, value_width)
    return aligned_bytes(size).zero_()


def attend(pool: library.ThreadPool, items: Sequence[Attention], workspace: Tensor | None = None) -> None:
    """Compute all items on the pool's threads; outputs are where the items say. Calls take turns with a workspace."""
    if workspace is None:
        widths = (max(item.width for item in items), max(item.value_width for item in items))
        workspace = attention_workspace(pool.threads, *widths)
    held = (Attention * len(items))(*items)
    library.check(
        library.library().fathom_attend_all(pool.pointer, ctypes.addressof(held), len(items), workspace.data_ptr())
    )


def attend_in_tiles(pool: library.ThreadPool, item: Attention) -> None:
    """Compute an item as ``attend`` does, in tiles of many queries and keys."""
    prompt = Prompt(item, 1)
    room = aligned_bytes(library.library().fathom_tiles_bytes(ctypes.addressof(prompt), pool.threads))
    library.check(library.library().fathom_attend_tiles_all(pool.pointer, ctypes.addressof(prompt), room.data_ptr()))
