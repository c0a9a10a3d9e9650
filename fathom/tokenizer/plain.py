"""A tokenizer's twin that knows no special tokens: whatever a text spells, none of its ids is one."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken

from fathom.tokenizer.definition import model_kind


def without_special(
    library: tokenizers.Tokenizer, parsed: Mapping[str, Any]
) -> tuple[tokenizers.Tokenizer, dict[str, int]]:
    """Return the library's tokenizer without special tokens, and the special tokens' ids.

    Added tokens count as special even if not marked so: published tokenizers add chat turns that way. Only whitespace
    and single characters stay as ordinary added text. The model keeps all ids, but spells none of a special token:
    merges to one are removed, and pieces and words that are one get a random name. What a model says of unknown text
    stays.
    """
    kept, removed = [], {}
    for token in parsed["added_tokens"]:
        content = token["content"]
        if not token["special"] and (not content.strip() or len(content) == 1):
            kept.append(token)
        else:
            removed[content] = int(token["id"])
    model = _plain_model(parsed, removed, kept)
    if model is parsed["model"]:
        return _sharing(library, kept), removed
    changed = {
        **parsed,
        "added_tokens": kept,
        "post_processor": None,
        "truncation": None,
        "padding": None,
        "model": model,
    }
    return tokenizers.Tokenizer.from_str(json.dumps(changed)), removed


def _plain_model(
    parsed: Mapping[str, Any], removed: Mapping[str, int], kept: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Return the model without special tokens; the same object where nothing changes."""
    model: Mapping[str, Any] = parsed["model"]
    vocab, kind = model["vocab"], model_kind(parsed)
    # a single character stays, unless bytes can spell it: no text may be lost
    alone = bool(model.get("byte_fallback"))
    gone = {content for content in removed if len(content) > 1 or alone}
    if kind == "Unigram":
        pieces = _numbered(vocab, kept)
        if len(pieces) == len(vocab) and not any(piece in gone for piece, _ in vocab):
            return model
        return {**model, "vocab": [[_random_name() if piece in gone else piece, score] for piece, score in pieces]}
    # the library numbers added tokens anew unless the vocabulary has them
    whole = {token["content"]: token["id"] for token in kept} | vocab
    if kind == "BPE":  # which reaches a longer token by merges alone
        gone = gone if model.get("ignore_merges") else {content for content in gone if len(content) == 1}
    names = {content: _random_name() for content in gone if content in vocab}
    unchanged = kind == "BPE" and not names and len(whole) == len(vocab)
    if unchanged and removed.keys().isdisjoint(map(_joined, model["merges"])):
        return model
    changed = {**model, "vocab": _renamed(whole, names), "unk_token": _unknown(model, names)}
    if kind != "BPE":
        return changed
    merges = [
        merge
        for merge in model["merges"]
        if _joined(merge) not in removed and not (names and any(part in names for part in _parts(merge)))
    ]
    return {**changed, "merges": merges}


def _numbered(vocab: Sequence[Sequence[Any]], kept: Sequence[Mapping[str, Any]]) -> list[Sequence[Any]]:
    """Return Unigram's pieces with those of added tokens beyond them, so that the library keeps their ids."""
    pieces = list(vocab)
    known, worst = {piece for piece, _ in vocab}, min((score for _, score in vocab), default=0.0)
    for token in sorted(kept, key=lambda token: int(token["id"])):
        if token["content"] not in known:
            pieces += [(_random_name(), worst) for _ in range(len(pieces), token["id"])]
            pieces.append((token["content"], worst))
    return pieces


def _unknown(model: Mapping[str, Any], names: Mapping[str, str]) -> Any:
    """Return unk_token of a model under its new name."""
    unknown = model.get("unk_token")
    return names.get(unknown, unknown) if isinstance(unknown, str) else unknown


def _random_name() -> str:
    """Return a name that no text can be written to hold."""
    return f"\ufdd0{secrets.token_hex(16)}"


def _renamed(vocab: Mapping[str, int], names: Mapping[str, str]) -> dict[str, int]:
    return {names.get(content, content): index for content, index in vocab.items()}


def _joined(merge: str | Sequence[str]) -> str:
    return merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge)


def _parts(merge: str | Sequence[str]) -> Sequence[str]:
    return merge.split(" ", 1) if isinstance(merge, str) else merge


def _sharing(library: tokenizers.Tokenizer, added: Sequence[Mapping[str, Any]]) -> tokenizers.Tokenizer:
    """Return a tokenizer of the same model, with only some of the added tokens and nothing added before a text."""
    plain = tokenizers.Tokenizer(library.model)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if getattr(library, part) is not None:
            setattr(plain, part, getattr(library, part))
    plain.add_tokens([AddedToken(**{name: value for name, value in token.items() if name != "id"}) for token in added])
    return plain
