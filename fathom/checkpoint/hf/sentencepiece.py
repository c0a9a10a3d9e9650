"""A SentencePiece file, ``tokenizer.model``, as the tokenizer of a directory without tokenizer.json.

Reads BPE with byte fallback and without normalisation, as Llama and Mistral publish it. The file is a protocol buffer
(sentencepiece_model.proto); what is read of it is what GGUF files hold too, so that both become tokenizers in one way.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fathom.checkpoint.gguf.tokens import PREFIX, tokenizer_from_metadata
from fathom.errors import CheckpointError, DataError
from fathom.files import read_bytes
from fathom.tokenizer.bpe import Tokenizer
from fathom.tokenizer.definition import LARGEST_DEFINITION, make_tokenizer_remedy
from fathom.tokenizer.named_tokens import CONFIG, read_object

FILE = "tokenizer.model"
# Numbers of fields in sentencepiece_model.proto: of a model, a piece, the trainer and the normalizer.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _SCORE, _PIECE_TYPE = 1, 2, 3
_MODEL_TYPE, _BYTE_FALLBACK = 3, 35
_CHARACTER_MAP, _ADD_PREFIX, _REMOVE_SPACES = 2, 3, 4
_IDS = {40: ("unknown_token_id", 0), 41: ("bos_token_id", 1), 42: ("eos_token_id", 2), 43: ("padding_token_id", -1)}
_UNIGRAM, _BPE = 1, 2
_NORMAL = 1
_Value = int | bytes


def read_sentencepiece(folder: Path) -> Tokenizer:
    """Read ``tokenizer.model`` and the configuration beside it.

    Raises:
        DataError: it is no SentencePiece file, or of a kind that is not read; the message says how to convert it.
    """
    path = folder / FILE
    try:
        metadata = _metadata(read_bytes(path, LARGEST_DEFINITION))
        found = tokenizer_from_metadata(metadata)
    except (OSError, ValueError, struct.error, CheckpointError) as error:
        reason = str(error).partition(";")[0].removeprefix(PREFIX)
        remedy = make_tokenizer_remedy(folder) or "get the file again"
        raise DataError(f"{path}: is not read ({reason}); {remedy}") from None
    if found is None:
        raise DataError(f"{path}: holds no tokens; get the file again")
    parsed = json.loads(found.tokenizer_json)
    config = read_object(folder / CONFIG)
    if config.get("legacy") is not True and metadata[f"{PREFIX}add_space_prefix"]:  # as transformers 5 reads the file
        parsed["normalizer"] = None
        parsed["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    return Tokenizer.from_definition(json.dumps(parsed, ensure_ascii=False), folder, found.config)


def _metadata(data: bytes) -> dict[str, Any]:
    """Return what a file says, under the names of GGUF; ``ValueError`` where that is not all it says."""
    tokens: list[str] = []
    scores: list[float] = []
    kinds: list[int] = []
    trainer: dict[int, _Value] = {}
    normalizer: dict[int, _Value] = {}
    for number, value in _fields(data):
        if number == _PIECES and isinstance(value, bytes):
            piece = dict(_fields(value))
            tokens.append(_text(piece.get(_PIECE, 0)))
            scores.append(_float(piece.get(_SCORE, b"\0\0\0\0")))
            kinds.append(_int(piece.get(_PIECE_TYPE, _NORMAL)))
        elif number in (_TRAINER, _NORMALIZER) and isinstance(value, bytes):
            (trainer if number == _TRAINER else normalizer).update(_fields(value))
    if not tokens:
        raise ValueError("no SentencePiece file")
    if trainer.get(_MODEL_TYPE, _UNIGRAM) != _BPE or not trainer.get(_BYTE_FALLBACK, 0):
        raise ValueError("only BPE with byte fallback is")
    if normalizer.get(_CHARACTER_MAP) or normalizer.get(_REMOVE_SPACES, 1):
        raise ValueError("only BPE without normalisation is")
    ids = {name: _int(trainer.get(number, default)) for number, (name, default) in _IDS.items()}
    return {
        f"{PREFIX}model": "llama",
        f"{PREFIX}tokens": tokens,
        f"{PREFIX}scores": scores,
        f"{PREFIX}token_type": kinds,
        f"{PREFIX}add_space_prefix": bool(normalizer.get(_ADD_PREFIX, 1)),
        **{PREFIX + name: token for name, token in ids.items() if token >= 0},
    }


def _fields(data: bytes) -> Iterator[tuple[int, _Value]]:
    """Yield the number and value of each field of a protocol buffer's message."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        wire = key & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield key >> 3, value - (1 << 64) if value >> 63 else value
            continue
        if wire == 2:
            size, place = _varint(data, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError("no SentencePiece file")
        if place + size > len(data):
            raise ValueError("cut short, or no SentencePiece file")
        yield key >> 3, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70 and place < len(data):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value & (1 << 64) - 1, place
    raise ValueError("cut short, or no SentencePiece file")


def _text(value: _Value) -> str:
    if not isinstance(value, bytes):
        raise ValueError("no SentencePiece file")
    return value.decode("utf-8")


def _float(value: _Value) -> float:
    if not isinstance(value, bytes):
        raise ValueError("no SentencePiece file")
    return float(struct.unpack("<f", value)[0])


def _int(value: _Value) -> int:
    if not isinstance(value, int):
        raise ValueError("no SentencePiece file")
    return value
