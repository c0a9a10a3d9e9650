"""What a parsed tokenizer.json says of its model: its kind, and the text of every id."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from fathom.errors import DataError

LARGEST_DEFINITION = 128 * 2**20
"""Bytes of a tokenizer.json; published ones of 262,144 tokens have 34 million."""
MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")


_OTHER_FORMS = (("tokenizer.model",), ("vocab.json", "merges.txt"), ("tekken.json",), ("vocab.txt",))
_MAKE = "from transformers import AutoTokenizer as A; A.from_pretrained('.').save_pretrained('.')"


def parse_definition(text: str) -> dict[str, Any]:
    """Parse a tokenizer.json; ``DataError`` where it is none, or of a kind that is not supported."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"tokenizer.json: not a usable tokenizer ({reason}); get the file again") from None
    if not isinstance(parsed, dict):
        raise DataError("tokenizer.json: not a usable tokenizer (no JSON object); get the file again")
    model_kind(parsed)
    return {**parsed, "added_tokens": parsed.get("added_tokens") or []}


def make_tokenizer_remedy(folder: Path) -> str | None:
    """Say how to make a tokenizer.json where the tokenizer lies in a folder in another form, or None."""
    for files in _OTHER_FORMS:
        if all((folder / name).is_file() for name in files):
            packages = "transformers sentencepiece protobuf tiktoken" if files[0].endswith(".model") else "transformers"
            made = f'pip install {packages} && python -c "{_MAKE}"'
            return f"only {' and '.join(files)}; make tokenizer.json from it, in that folder: {made}"
    return None


def model_kind(parsed: Mapping[str, Any]) -> str:
    """Return the type of a tokenizer's model; old files leave it out, and their fields tell.

    Raises:
        DataError: there is no model, or one of another type.
    """
    model = parsed.get("model")
    if not isinstance(model, Mapping) or not isinstance(model.get("vocab"), Mapping | list):
        raise DataError("tokenizer.json: not a usable tokenizer (model.vocab is missing); get the file again")
    kind = model.get("type")
    if kind is None and "merges" in model:
        return "BPE"
    if kind is None and isinstance(model["vocab"], list):
        return "Unigram"
    if kind is None:
        return "WordPiece" if "continuing_subword_prefix" in model else "WordLevel"
    if kind not in MODELS:
        raise DataError(
            f"tokenizer.json: model.type is {kind!r}, which is not supported; use one of {', '.join(MODELS)}"
        )
    return str(kind)


def vocabulary(parsed: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the text and id of every token of the model, added tokens aside."""
    vocab = parsed["model"]["vocab"]
    if isinstance(vocab, list):  # Unigram: pieces with their scores, in the order of their ids
        yield from ((piece, index) for index, (piece, _) in enumerate(vocab))
    else:
        yield from vocab.items()


def longest_token(parsed: Mapping[str, Any]) -> int:
    """Return the characters of the longest token, added ones included."""
    added = (token["content"] for token in parsed["added_tokens"])
    return max(map(len, chain((text for text, _ in vocabulary(parsed)), added)), default=0)


def unknown_id(parsed: Mapping[str, Any]) -> int | None:
    """Return the id that text without a token of its own gets, or None."""
    model = parsed["model"]
    if isinstance(model["vocab"], list):
        given = model.get("unk_id")
        return given if isinstance(given, int) else None
    token = model.get("unk_token")
    found = model["vocab"].get(token) if isinstance(token, str) else None
    return found if isinstance(found, int) else None
