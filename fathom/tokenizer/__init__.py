"""Tokenizers as they are published: byte-level BPE, SentencePiece-like BPE, and streaming decoding."""

from __future__ import annotations

from fathom.tokenizer.bpe import Tokenizer
from fathom.tokenizer.pieces import StreamDecoder
from fathom.tokenizer.special import SPECIAL_TOKENS
from fathom.tokenizer.training import train_bpe

__all__ = ["SPECIAL_TOKENS", "StreamDecoder", "Tokenizer", "train_bpe"]
