"""A tokenizer as GGUF metadata, so that llama.cpp gives the same ids: byte-level BPE, or SentencePiece's BPE."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import tokenizers

from fathom.checkpoint.gguf.keys import Metadata
from fathom.checkpoint.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizerRules, pre_tokenizer, pre_tokenizer_name
from fathom.errors import CheckpointError
from fathom.spec import ModelSpec
from fathom.tokenizer.bpe import Tokenizer
from fathom.tokenizer.chat_templates import DEFAULT
from fathom.tokenizer.decoders import is_byte_level
from fathom.tokenizer.definition import model_kind

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_MARKERS = (("<|", "|>"), ("<｜", "｜>"))
_SPACE = "▁"
_PROBES = (
    "The quick brown fox's 12345 jumps!  It cost $3.50, didn't it?\n\n\tNo...",
    "def f(x_1, *args):\n    return {'a': x_1[0] ** 2}  # 100%\r\n",
    "天下大势，分久必合，2024年。こんにちは、世界！ 안녕하세요 12",
    "Überraschung in Ελλάδα и Москве: €1.000,50 – «да»… ½ ² ١٢٣ é",
    " leading,   runs    of spaces \n \n and ```code``` \U0001f600\U0001f468\u200d\U0001f469 end  ",
)


def metadata_from_tokenizer(tokenizer: Tokenizer, spec: ModelSpec) -> Metadata:
    """Write tokens, merges or scores, special ids and the chat template; ids without a token become unused ones.

    Raises:
        CheckpointError: the vocabulary is larger than the model's, or of a kind llama.cpp has no name for.
    """
    parsed = json.loads(tokenizer.tokenizer_json)
    byte_level = _is_byte_level(parsed)
    tokens, types = _tokens(parsed, spec.vocab_size)
    written: Metadata = {
        "tokenizer.ggml.tokens": ("STRING[]", tokens),
        "tokenizer.ggml.token_type": ("INT32[]", types),
        "tokenizer.ggml.eos_token_id": ("UINT32", tokenizer.eos_id),
        "tokenizer.ggml.padding_token_id": ("UINT32", tokenizer.pad_id),
        "tokenizer.ggml.add_bos_token": ("BOOL", bool(tokenizer.prefix_ids)),
    }
    if tokenizer.bos_id is not None:
        written["tokenizer.ggml.bos_token_id"] = ("UINT32", tokenizer.bos_id)
    written |= _templates(tokenizer)
    merges = _merges(parsed)
    if byte_level:
        return written | {
            "tokenizer.ggml.model": ("STRING", "gpt2"),
            "tokenizer.ggml.pre": ("STRING", pre_tokenizer_name(parsed) or _nearest(parsed)),
            "tokenizer.ggml.merges": ("STRING[]", merges),
        }
    unknown = parsed["model"].get("unk_token")
    first = tokenizer.id_to_token(next(iter(tokenizer.encode("a")), None))
    return written | {
        "tokenizer.ggml.model": ("STRING", "llama"),
        "tokenizer.ggml.pre": ("STRING", "default"),
        "tokenizer.ggml.scores": ("FLOAT32[]", _scores(tokens, merges)),
        "tokenizer.ggml.add_space_prefix": ("BOOL", first.startswith(_SPACE)),
        **({"tokenizer.ggml.unknown_token_id": ("UINT32", tokens.index(unknown))} if unknown in tokens else {}),
    }


def _templates(tokenizer: Tokenizer) -> Metadata:
    """Write the default chat template, and those with other names as llama.cpp's converter does."""
    named = {_plain_name(name): text for name, text in tokenizer.chat_templates.items() if name != DEFAULT}
    written: Metadata = {f"tokenizer.chat_template.{name}": ("STRING", text) for name, text in named.items()}
    if named:
        written["tokenizer.chat_templates"] = ("STRING[]", list(named))
    if DEFAULT in tokenizer.chat_templates or (tokenizer.can_chat and not named):
        written["tokenizer.chat_template"] = ("STRING", tokenizer.chat_template)
    return written


def _plain_name(name: str) -> str:
    return "".join(char if char.isascii() and char.isalnum() else "_" for char in name)


def tokenizer_warnings(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return one sentence for each way in which llama.cpp may give other ids."""
    parsed = json.loads(tokenizer.tokenizer_json)
    found = []
    if not _is_byte_level(parsed):
        if not _joins_all(parsed):
            found.append("tokenizer: llama.cpp joins every pair that makes a token, also pairs its merges leave out")
        return tuple(found)
    if pre_tokenizer_name(parsed) is None:
        found.append(
            f"tokenizer: llama.cpp has no name for how it splits text; {_nearest(parsed)!r} is nearest, and some text "
            "gets other tokens"
        )
    if parsed.get("normalizer"):
        found.append(f"tokenizer: llama.cpp does not normalise text ({parsed['normalizer']['type']})")
    return tuple(found)


def _is_byte_level(parsed: Mapping[str, Any]) -> bool:
    """Tell byte-level BPE from SentencePiece's; ``CheckpointError`` for anything else, which is not written."""
    model, kind = parsed["model"], model_kind(parsed)
    if kind == "BPE" and is_byte_level(parsed.get("decoder")):
        return True
    if kind == "BPE" and model.get("byte_fallback"):
        return False
    raise CheckpointError(f"tokenizer: {kind} is not one llama.cpp has a name for; use byte-level or byte-fallback BPE")


def _tokens(parsed: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Return every id's spelling and llama.cpp's type of it."""
    vocabulary: Mapping[str, int] = parsed["model"]["vocab"]
    bytes_ = _BYTE if parsed["model"].get("byte_fallback") else _NORMAL
    spelled = {index: (token, bytes_ if _spells_byte(token) else _NORMAL) for token, index in vocabulary.items()}
    unknown = vocabulary.get(parsed["model"].get("unk_token") or "")
    for added in parsed["added_tokens"]:
        content = added["content"]
        marker = any(content.startswith(start) and content.endswith(end) for start, end in _MARKERS)
        spelled[added["id"]] = (content, _CONTROL if added["special"] or marker else _USER_DEFINED)
    if unknown is not None:
        spelled[unknown] = (spelled[unknown][0], _UNKNOWN)
    if spelled and max(spelled) >= size:
        raise CheckpointError(
            f"tokenizer: has token {max(spelled)}, but the model only {size}; use the tokenizer it was trained with"
        )
    listed = [spelled.get(index, (f"[PAD{index}]", _UNUSED)) for index in range(size)]
    return [token for token, _ in listed], [kind for _, kind in listed]


def _spells_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Return scores that rank joins as the list of merges does: llama.cpp joins the pair of the best token first."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _merges(parsed: Mapping[str, Any]) -> list[str]:
    """Return the merges as GGUF spells them, parts apart by a space."""
    return [" ".join(merge) if isinstance(merge, list) else merge for merge in parsed["model"]["merges"]]


def _joins_all(parsed: Mapping[str, Any]) -> bool:
    """Whether every two tokens that make a third are a merge, and all merges to one token follow one another."""
    added = {token["content"] for token in parsed["added_tokens"]}
    vocabulary = {token for token in parsed["model"]["vocab"] if token not in added and not _spells_byte(token)}
    pairs = {
        f"{token[:cut]} {token[cut:]}"
        for token in vocabulary
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    }
    merges = _merges(parsed)
    joined = [merge.replace(" ", "", 1) for merge in merges]
    turns = sum(one != other for one, other in pairwise([None, *joined]))
    return pairs <= set(merges) and turns == len(set(joined))


def _nearest(parsed: Mapping[str, Any]) -> str:
    """Return the name under which most pieces of the probes begin and end where they should."""
    wanted, ignores = _pieces(parsed), bool(parsed["model"].get("ignore_merges", False))
    splits: dict[PreTokenizerRules, str] = {}
    for name, split in PRE_TOKENIZERS.items():
        if split.ignore_merges == ignores:
            splits.setdefault(split, name)
    nearest = min(splits, key=lambda split: len(wanted ^ _pieces({**parsed, "pre_tokenizer": pre_tokenizer(split)})))
    return splits[nearest]


def _pieces(parsed: Mapping[str, Any]) -> set[tuple[int, int, int]]:
    """Return where each piece of each probe begins and ends."""
    part = tokenizers.Tokenizer.from_str(json.dumps({**parsed, "post_processor": None})).pre_tokenizer
    if part is None:
        return {(number, 0, len(probe)) for number, probe in enumerate(_PROBES)}
    return {(number, *place) for number, probe in enumerate(_PROBES) for _, place in part.pre_tokenize_str(probe)}
