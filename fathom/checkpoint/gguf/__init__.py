"""GGUF files, the format of llama.cpp: reading weights and tokenizer, and writing."""

from __future__ import annotations

from fathom.checkpoint.gguf.conversion_warnings import conversion_warnings, unopenable
from fathom.checkpoint.gguf.source import GGUFFile
from fathom.checkpoint.gguf.write import write_gguf
from fathom.checkpoint.gguf.write_tokens import tokenizer_warnings

__all__ = ["GGUFFile", "conversion_warnings", "tokenizer_warnings", "unopenable", "write_gguf"]
