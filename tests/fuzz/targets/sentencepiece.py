"""Damaged SentencePiece files, ``tokenizer.model``: read or refused; what is read encodes and decodes."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Sequence

from fathom.checkpoint.hf.sentencepiece import FILE, read_sentencepiece
from tests.fuzz.driver import Target

TEXT = "the <s> ab AB 12  \n天!" * 20
_Field = tuple[int, "int | float | bytes | list[_Field]"]
_NUMBERS = (0, 1, 2, 3, 5, 6, 7, 255, 2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1)
_FLOATS = (0.0, -1.0, 1e38, -1e38, float("nan"), float("inf"), float("-inf"), 1e-45)
_TEXTS = (
    b"",
    b"\xff",
    b"a\0b",
    b"<s>",
    b"<0x41>",
    b"<0xZZ>",
    "▁".encode(),
    "天".encode() * 50,
    b"a" * 20_000,
    b"\x1b]",
)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _message(fields: Sequence[_Field]) -> bytes:
    """Return the fields of a message of a protocol buffer."""
    parts = []
    for number, value in fields:
        if isinstance(value, int):
            parts.append(_varint(number << 3) + _varint(value))
        elif isinstance(value, float):
            parts.append(_varint(number << 3 | 5) + struct.pack("<f", value))
        else:
            inner = value if isinstance(value, bytes) else _message(value)
            parts.append(_varint(number << 3 | 2) + _varint(len(inner)) + inner)
    return b"".join(parts)


class SentencePieceFiles(Target):
    """Whole files, with and without a configuration beside them."""

    name = "sentencepiece"
    suffix = ".model"
    short_executions = 60
    memory_bytes = 512 * 2**20

    def start(self) -> None:
        words = ["▁", *"abcdeht", "th", "he", "▁th", "▁the", "ab", "▁ab"]
        pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{i:02X}>", 6) for i in range(256)), ("<tool>", 4)]
        pieces += [(word, 1) for word in words]
        self._fields: list[_Field] = [
            (1, [(1, piece.encode()), (2, -float(index)), (3, kind)]) for index, (piece, kind) in enumerate(pieces)
        ]
        ids: list[_Field] = [(40, 0), (41, 1), (42, 2)]
        self._fields += [(2, [(3, 2), (35, 1), *ids]), (3, [(1, b"identity"), (3, 1), (4, 0)])]
        (self.folder / "tokenizer_config.json").write_text(json.dumps({"legacy": False, "eos_token": "</s>"}))
        self.check(_message(self._fields))
        assert not self.refusals

    def make(self, rng: random.Random) -> bytes:
        fields = list(self._fields)
        for _ in range(rng.choice((1, 1, 2, 4))):
            place = rng.choice((rng.randrange(len(fields)), len(fields) - 1, len(fields) - 2))
            number, inner = fields[place]
            way = rng.random()
            if way < 0.08:
                del fields[place]
            elif way < 0.16:
                fields[place:place] = [fields[place]] * rng.choice((1, 3, 2_000))
            elif way < 0.22:
                fields[place] = (rng.randrange(50), inner)
            elif isinstance(inner, list):
                fields[place] = (number, _damaged(inner, rng))
        data = bytearray(_message(fields))
        if rng.random() < 0.25:
            at = rng.randrange(len(data))
            data[at : at + rng.choice((0, 1, 4))] = rng.choice((rng.randbytes(2), b"\xff" * 9, b"\x80" * 12, b""))
        return bytes(data[: rng.randrange(1, len(data))] if rng.random() < 0.05 else data)

    def check(self, data: bytes) -> None:
        (self.folder / FILE).write_bytes(data)
        with self.tolerated():
            tokenizer = read_sentencepiece(self.folder)
            for special in (False, True):
                ids = tokenizer.encode(TEXT, allow_special=special)
                assert len(ids) < 100 * len(TEXT)
                assert len(tokenizer.decode(ids, skip_special=not special)) < 10_000 * len(TEXT)
            tokenizer.decode([*tokenizer.prefix_ids, 0, 10**9])


def _damaged(fields: Sequence[_Field], rng: random.Random) -> list[_Field]:
    changed = list(fields)
    place = rng.randrange(len(changed))
    number, value = changed[place]
    if rng.random() < 0.1:
        del changed[place]
    elif rng.random() < 0.7:  # of the same kind
        choices = _NUMBERS if isinstance(value, int) else _FLOATS if isinstance(value, float) else _TEXTS
        changed[place] = (number, rng.choice(choices))
    else:
        changed.append((rng.choice((number, 1, 2, 3, 4, 35, 40, 43)), rng.choice((*_NUMBERS, *_FLOATS, *_TEXTS))))
    return changed


TARGETS = (SentencePieceFiles,)
