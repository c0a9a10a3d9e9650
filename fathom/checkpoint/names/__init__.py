"""Published tensor names: one table per family, from our parameters to what is on disk and back, bit for bit."""

from __future__ import annotations

from fathom.checkpoint.names.convert import (
    NameTable,
    from_published,
    name_table,
    stream_from_published,
    stream_to_published,
    to_published,
)
from fathom.checkpoint.names.rules import Copy, Rule
from fathom.checkpoint.names.shapes import Shape, parameter_shapes

__all__ = [
    "Copy",
    "NameTable",
    "Rule",
    "Shape",
    "from_published",
    "name_table",
    "parameter_shapes",
    "stream_from_published",
    "stream_to_published",
    "to_published",
]
