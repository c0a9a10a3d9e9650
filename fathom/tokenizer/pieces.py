"""The bytes of each token id, read from tokenizer.json, and decoding by joining them."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fathom.errors import DataError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_UNKNOWN = "\N{REPLACEMENT CHARACTER}".encode()


def byte_characters() -> dict[str, int]:
    """Map each printable character of byte-level BPE to its byte.

    Bytes that are printable Latin-1 characters map to themselves; the other 68 take the code points from 256 on, in
    order (the scheme of GPT-2, which every byte-level tokenizer.json uses).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(rest)}


class PieceTable:
    """The bytes of every token id.

    Reads byte-level vocabularies (DeepSeek, Qwen2, Llama 3, Fathom) and SentencePiece-like ones with byte fallback
    (Mistral, Llama 2); any other decoder raises ``DataError``. An id without a token decodes to U+FFFD.
    """

    def __init__(self, tokenizer_json: Mapping[str, Any], special_ids: frozenset[int]) -> None:
        vocabulary: Mapping[str, int] = tokenizer_json["model"]["vocab"]
        added: Mapping[str, int] = {token["content"]: token["id"] for token in tokenizer_json["added_tokens"]}
        kinds = _decoder_kinds(tokenizer_json.get("decoder"))
        if "ByteLevel" in kinds:
            to_bytes = _byte_level(vocabulary)
            added_bytes = {text: text.encode() for text in added}
        elif "ByteFallback" in kinds:
            to_bytes = {text: _byte_fallback(text) for text in vocabulary}
            added_bytes = {text: _byte_fallback(text) for text in added}
        else:
            raise DataError(
                f"tokenizer.json: decoder {'+'.join(kinds) or 'none'} is not supported; "
                "use a byte-level or byte-fallback BPE tokenizer"
            )
        self._strip_first_space = "Strip" in kinds  # as published: one space, at the start
        size = max([*vocabulary.values(), *added.values()], default=-1) + 1
        self._pieces: list[bytes] = [_UNKNOWN] * size
        for text, index in vocabulary.items():
            self._pieces[index] = to_bytes[text]
        for text, index in added.items():
            self._pieces[index] = added_bytes[text]
        self._special = special_ids

    def token_bytes(self, token_id: int, *, skip_special: bool) -> bytes:
        """Return the bytes of one id: none for a skipped special token, U+FFFD for an id without a token."""
        if skip_special and token_id in self._special:
            return b""
        return self._pieces[token_id] if 0 <= token_id < len(self._pieces) else _UNKNOWN

    def decode(self, ids: Sequence[int], *, skip_special: bool, continues: bool = False) -> str:
        """Join the bytes of all ids and read them as UTF-8; broken sequences become U+FFFD."""
        stream = StreamDecoder(self, skip_special=skip_special, continues=continues)
        return (
            stream.push_bytes(b"".join([self.token_bytes(i, skip_special=skip_special) for i in ids])) + stream.flush()
        )

    @property
    def strips_first_space(self) -> bool:
        """Whether decoding drops one space at the very start (SentencePiece's dummy prefix)."""
        return self._strip_first_space


class StreamDecoder:
    """Decodes token ids incrementally, holding back bytes until they complete a character.

    All ``push`` results and the final ``flush``, joined, equal ``Tokenizer.decode`` of the same ids. With
    ``continues`` a space at the start is kept.
    """

    def __init__(self, table: PieceTable, *, skip_special: bool = True, continues: bool = False) -> None:
        self._table = table
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strips = table.strips_first_space and not continues
        self._strip = self._strips

    def push(self, token_id: int) -> str:
        """Add one id; return the characters it completes, possibly none."""
        return self.push_bytes(self._table.token_bytes(token_id, skip_special=self._skip_special))

    def push_bytes(self, data: bytes) -> str:
        """Add raw bytes; return the characters they complete."""
        if self._strip and data:
            self._strip = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def flush(self) -> str:
        """End the text: an unfinished character becomes U+FFFD. The decoder is then reset."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        self._strip = self._strips
        return rest


def _decoder_kinds(decoder: Mapping[str, Any] | None) -> list[str]:
    if decoder is None:
        return []
    return [kind for part in decoder.get("decoders", [decoder]) for kind in [str(part["type"])]]


def _byte_level(texts: Iterable[str]) -> dict[str, bytes]:
    """Map texts of byte-level characters to their bytes, and any other text to its UTF-8."""
    table = byte_characters()
    is_byte_level = re.compile("[" + re.escape("".join(table)) + "]*").fullmatch
    to_latin = str.maketrans({character: chr(byte) for character, byte in table.items()})
    return {
        text: text.translate(to_latin).encode("latin-1") if is_byte_level(text) else text.encode() for text in texts
    }


def _byte_fallback(text: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(text)
    return bytes([int(match[1], 16)]) if match else text.replace("▁", " ").encode()
