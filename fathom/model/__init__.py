"""The model: one decoder for every family, its KV caches, and its construction from a spec."""

from __future__ import annotations

from fathom.model.build import build
from fathom.model.cache import StaticCache
from fathom.model.decoder import Decoder, DecoderOutput

__all__ = ["Decoder", "DecoderOutput", "StaticCache", "build"]
