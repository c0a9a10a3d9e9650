"""A pool's pages as the library reads them.

X elements of one token, Y bytes of its row.
"""

from __future__ import annotations

import torch

from fathom.model.cache.pages import Pages, PlainPages
from fathom.model.cache.quantized import QuantizedPages
from fathom.model.native.structs import PAGES_BFLOAT16, PAGES_FLOAT32, PAGES_QUANTIZED, PageRows, Segment

_PLAIN = {torch.float32: PAGES_FLOAT32, torch.bfloat16: PAGES_BFLOAT16}


def page_rows(pages: Pages) -> PageRows | None:
    """Return the structure of pages, None where the library does not know their format. The pages must stay alive."""
    if isinstance(pages, PlainPages):
        rows = pages.rows_NX
        if rows.dtype not in _PLAIN:
            return None
        width = rows.shape[1]
        return PageRows(rows.data_ptr(), width * rows.element_size(), _PLAIN[rows.dtype], width)
    if isinstance(pages, QuantizedPages):
        row, rows = pages.row, pages.rows_NY
        if len(row.segments) > 2:
            return None
        segments = (Segment * 2)(*(Segment(part.width, part.largest, part.group) for part in row.segments))
        return PageRows(rows.data_ptr(), row.nbytes, PAGES_QUANTIZED, row.width, len(row.segments), segments)
    return None
