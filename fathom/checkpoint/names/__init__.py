"""Hugging Face tensor names: one table per family that maps Fathom's parameters to files and back, bit for bit."""

from __future__ import annotations

from fathom.checkpoint.names.convert import (
    NameTable,
    from_hf,
    name_table,
    stream_from_hf,
    stream_to_hf,
    to_hf,
)
from fathom.checkpoint.names.gate_up import current_layout, joined_shape
from fathom.checkpoint.names.promised import check_promised
from fathom.checkpoint.names.rules import DuplicateTensor, Rule

__all__ = [
    "DuplicateTensor",
    "NameTable",
    "Rule",
    "check_promised",
    "current_layout",
    "from_hf",
    "joined_shape",
    "name_table",
    "stream_from_hf",
    "stream_to_hf",
    "to_hf",
]
