"""The decoder of a tokenizer.json as the bytes of each token, so that decoding is joining bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fathom.errors import DataError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_CLEAN_UP = (
    *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m")),
    *((" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")),
)
_POSITIONAL = frozenset({"Metaspace", "WordPiece"})
"""Decoders that treat the first token of a text in a way of its own."""
_REMEDY = "use a tokenizer whose decoder is ByteLevel, ByteFallback, Metaspace, WordPiece, Replace, Strip or none"

TokenText = Callable[[str, bool], str]
"""Maps a token as the vocabulary writes it, and whether it is the first of a text, to text."""


@dataclass(frozen=True, slots=True)
class TextDecoder:
    """A decoder other than the byte-level one.

    ``steps`` are applied one after another; ``byte_fallback`` reads tokens such as <0x0A> as bytes. ``strips`` says
    that one space at the start of a text is dropped, ``first_differs`` that its first token may read otherwise.
    """

    steps: tuple[TokenText, ...]
    byte_fallback: bool
    strips: bool
    first_differs: bool

    def token_bytes(self, token: str, *, first: bool = False) -> bytes:
        """Return a token's bytes, after other tokens or as the first of a text; the space of ``strips`` stays."""
        match = _BYTE_TOKEN.fullmatch(token) if self.byte_fallback else None
        if match:
            return bytes([int(match[1], 16)])
        for step in self.steps:
            token = step(token, first)
        return token.encode()


def is_byte_level(decoder: Mapping[str, Any] | None) -> bool:
    """Whether a decoder maps characters to bytes, as GPT-2's does."""
    return any(part["type"] == "ByteLevel" for part in _parts(decoder))


def text_decoder(decoder: Mapping[str, Any] | None) -> TextDecoder:
    """Read a decoder that is not byte-level; ``DataError`` where it needs more than one token at a time."""
    parts = _parts(decoder)
    kinds = [str(part["type"]) for part in parts]
    steps: list[TokenText] = []
    fused = strips = False
    for part, kind in zip(parts, kinds, strict=True):
        if kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused:
            strips = _strips_first_space(part)
        elif kind != "ByteFallback":
            steps.append(_step(part, fused))
    if not parts:
        steps.append(lambda token, first: token if first else " " + token)
    first_differs = not parts or not _POSITIONAL.isdisjoint(kinds)
    return TextDecoder(tuple(steps), "ByteFallback" in kinds, strips, first_differs)


def _parts(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return the decoders of a sequence, or the one there is."""
    if decoder is None:
        return []
    if decoder.get("type") == "Sequence":
        return [inner for part in decoder["decoders"] for inner in _parts(part)]
    return [decoder]


def _step(part: Mapping[str, Any], fused: bool) -> TokenText:
    kind = part["type"]
    if kind == "Metaspace":
        return _metaspace(str(part.get("replacement", "▁")), _prepends(part))
    if kind == "WordPiece":
        return _word_piece(str(part["prefix"]), bool(part.get("cleanup", True)))
    if kind == "Replace" and "String" in part["pattern"]:
        wanted, given = part["pattern"]["String"], part["content"]
        if not fused or len(wanted) == 1:
            return lambda token, first: token.replace(wanted, given)
    if kind == "Strip":
        return _strip(part["content"], part["start"], part["stop"])
    raise DataError(f"tokenizer.json: decoder {kind} is not supported here; {_REMEDY}")


def _prepends(part: Mapping[str, Any]) -> bool:
    scheme: str = part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never")
    return scheme != "never"


def _metaspace(replacement: str, prepends: bool) -> TokenText:
    """The first token of a text loses all its spaces, as in the library."""
    return lambda token, first: token.replace(replacement, "" if first and prepends else " ")


def _word_piece(prefix: str, cleanup: bool) -> TokenText:
    def step(token: str, first: bool) -> str:
        if not first:
            token = token.removeprefix(prefix) if token.startswith(prefix) else " " + token
        for wanted, given in _CLEAN_UP if cleanup else ():
            token = token.replace(wanted, given)
        return token

    return step


def _strip(content: str, start: int, stop: int) -> TokenText:
    def step(token: str, first: bool) -> str:
        for _ in range(start):
            token = token.removeprefix(content)
        for _ in range(stop):
            token = token.removesuffix(content)
        return token

    return step


def _strips_first_space(part: Mapping[str, Any]) -> bool:
    if (part["content"], part["stop"]) != (" ", 0) or part["start"] not in (0, 1):
        raise DataError(f"tokenizer.json: decoder Strip of {part['start']} and {part['stop']} characters; {_REMEDY}")
    return bool(part["start"])
