"""The bytes of each token id, read from tokenizer.json, and decoding by joining them."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fathom.tokenizer.decoders import is_byte_level, text_decoder
from fathom.tokenizer.definition import vocabulary

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
    """The bytes of every token id, by the decoder of its tokenizer.json.

    Byte-level vocabularies (DeepSeek, Qwen2, Llama 3, Fathom), SentencePiece-like ones with byte fallback (Mistral,
    Llama 2), and those of pieces or words (Unigram, WordPiece, WordLevel), whose first token may differ; any other
    decoder raises ``DataError``. An id without a token decodes to U+FFFD.
    """

    def __init__(self, tokenizer_json: Mapping[str, Any], special_ids: frozenset[int]) -> None:
        words = list(vocabulary(tokenizer_json))
        added = [(token["content"], token["id"]) for token in tokenizer_json["added_tokens"]]
        self._special = special_ids
        self._pieces: list[bytes | None] = [_UNKNOWN] * (max([index for _, index in (*words, *added)], default=-1) + 1)
        self._texts: dict[int, str] = {}
        self._first: dict[int, bytes] = {}
        self._strip_first_space = False
        decoder = tokenizer_json.get("decoder")
        if is_byte_level(decoder):
            self._texts = {index: text for text, index in words}  # read when they are asked for
            for index in self._texts:
                self._pieces[index] = None
            for text, index in added:
                self._pieces[index] = text.encode()
            return
        reader = text_decoder(decoder)
        self._strip_first_space = reader.strips
        for text, index in (*words, *added):
            self._pieces[index] = reader.token_bytes(text)
        if reader.first_differs:
            first = {index: reader.token_bytes(text, first=True) for text, index in (*words, *added)}
            self._first = {index: data for index, data in first.items() if data != self._pieces[index]}

    @property
    def ids(self) -> range:
        """Every id from 0 to the largest that has a token."""
        return range(len(self._pieces))

    def token_bytes(self, token_id: int, *, skip_special: bool, first: bool = False) -> bytes:
        """Return the bytes of one id: none for a skipped special token, U+FFFD for an id without a token.

        ``first`` gives those it has at the start of a text.
        """
        if skip_special and token_id in self._special:
            return b""
        if first and token_id in self._first:
            return self._first[token_id]
        piece = self._pieces[token_id] if 0 <= token_id < len(self._pieces) else _UNKNOWN
        if piece is None:
            piece = self._pieces[token_id] = _byte_level(self._texts[token_id])
        return piece

    def decode(self, ids: Sequence[int], *, skip_special: bool, continues: bool = False) -> str:
        """Join the bytes of all ids and read them as UTF-8; broken sequences become U+FFFD."""
        stream = StreamDecoder(self, skip_special=skip_special, continues=continues)
        pieces = [self.token_bytes(i, skip_special=skip_special) for i in ids]
        if self._first and not continues:
            first = next((index for index, i in enumerate(ids) if not (skip_special and i in self._special)), None)
            if first is not None:
                pieces[first] = self.token_bytes(ids[first], skip_special=skip_special, first=True)
        return stream.push_bytes(b"".join(pieces)) + stream.flush()

    def is_special(self, token_id: int) -> bool:
        """Whether an id is a special token."""
        return token_id in self._special

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
        self._continues = continues
        self._first = not continues

    def push(self, token_id: int) -> str:
        """Add one id; return the characters it completes, possibly none."""
        data = self._table.token_bytes(token_id, skip_special=self._skip_special, first=self._first)
        if not (self._skip_special and self._table.is_special(token_id)):
            self._first = False
        return self.push_bytes(data)

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
        self._strip, self._first = self._strips, not self._continues
        return rest


_IS_BYTE_LEVEL = re.compile("[" + re.escape("".join(byte_characters())) + "]*")
_TO_LATIN = str.maketrans({character: chr(byte) for character, byte in byte_characters().items()})


def _byte_level(text: str) -> bytes:
    """Return the bytes that byte-level characters spell, of any other text its UTF-8."""
    return text.translate(_TO_LATIN).encode("latin-1") if _IS_BYTE_LEVEL.fullmatch(text) else text.encode()
