"""A pool's pages as the library reads them.

X elements of one token, Y bytes of its row.
"""

from __future__ import annotations

import torch

from fathom.kernels.native.attention import MAX_SEGMENTS, describe_pages
from fathom.kernels.native.attention import Pages as NativePages
from fathom.model.cache.pages import Pages, PlainPages
from fathom.model.cache.quantized import QuantizedPages


def native_pages(pages: Pages) -> NativePages | None:
    """Return the structure of pages, None where the library does not know their format. The pages must stay alive."""
    if isinstance(pages, PlainPages) and pages.rows_NX.dtype in (torch.float32, torch.bfloat16):
        return describe_pages(pages.rows_NX)
    if isinstance(pages, QuantizedPages) and len(pages.row.segments) <= MAX_SEGMENTS:
        return describe_pages(pages.rows_NY, pages.row)
    return None
