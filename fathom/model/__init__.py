"""The model: one decoder for every family, its caches, and how it is built."""

from __future__ import annotations

from fathom.model.build import build
from fathom.model.cache import StaticCache
from fathom.model.decoder import Decoder, DecoderOutput

__all__ = ["Decoder", "DecoderOutput", "StaticCache", "build"]
