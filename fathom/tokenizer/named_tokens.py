"""The special tokens that the files beside a tokenizer.json name: which they are, and how they are matched.

As in transformers: special_tokens_map.json comes before tokenizer_config.json, unless the latter lists all added tokens
(``added_tokens_decoder``), whose flags then count; a special token of the vocabulary is an added token even where
tokenizer.json does not list it. Beyond that, each file fills in what the others leave out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from fathom.errors import DataError
from fathom.files import read_text
from fathom.logs import warn_once
from fathom.tokenizer.definition import vocabulary

CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
FIELDS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_REQUIRED = ("bos_token", "eos_token")
_DECODER = "added_tokens_decoder"
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_MODEL_ENDS = (
    ("generation_config.json", "eos_token_id"),
    ("config.json", "eos_token_id"),
    ("spec.json", "eos_token_ids"),  # of a Fathom checkpoint
)
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_GPT2 = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
CLASS_DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "LlamaTokenizer": _LLAMA,
    "CodeLlamaTokenizer": _LLAMA,
    "GPT2Tokenizer": _GPT2,
    "Qwen2Tokenizer": {"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    "T5Tokenizer": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
}
"""What a class of transformers means where its files leave a token out."""


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object, or nothing from a file that is not there; ``DataError`` names one that cannot be used."""
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read ({reason}); get the file again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: is no JSON object; get the file again")
    return content


def token_content(value: Any) -> Any:
    """Return the text of a token given as text or as a table with flags; what is neither is returned as it is."""
    return value.get("content") if isinstance(value, Mapping) else value


def with_named_tokens(folder: Path, parsed: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tokenizer_config.json completed by the files beside it.

    Raises:
        DataError: a file cannot be read, or names a token that is of no use.
    """
    special = read_object(folder / MAP)
    texts = dict(vocabulary(parsed)) | _added_ids(parsed)
    found = dict(config)
    for field in FIELDS:
        _complete(found, field, folder, special)
    usual = CLASS_DEFAULTS.get(str(config.get("tokenizer_class")).removesuffix("Fast"), {})
    for field, content in usual.items():
        if field not in found and content in texts:
            found[field] = content
    if found.get("eos_token") is None:
        by_id = {index: text for text, index in texts.items()}
        end = next((by_id[index] for index in _end_ids(folder) if index in by_id), None)
        if end is not None:
            found["eos_token"] = end
    for name in _LISTS:
        if name in special and not (_DECODER in config and config.get(name)):
            found[name] = special[name]
    for field in FIELDS:
        _check_known(found, field, folder, special, texts)
    return found


def with_added_tokens(text: str, parsed: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> str:
    """Return a tokenizer.json with the added tokens that its configuration has beyond it; mostly the same text."""
    known = {token["content"]: token for token in parsed["added_tokens"]}
    wanted = {token["content"]: token for token in _declared(config, known, folder)}
    words = {word for word, _ in vocabulary(parsed)}
    for field in (*FIELDS, *_LISTS):
        for token in _tokens(config.get(field)):
            content = token["content"]
            ordinary = len(content) == 1 or not content.strip()  # as where "!" pads: text needs it
            if content in words and content not in known and content not in wanted and not ordinary:
                wanted[content] = {**token, "special": True}
    if not wanted:
        return text
    library = tokenizers.Tokenizer.from_str(text)
    library.add_tokens([AddedToken(token["content"], **_flags(token)) for token in wanted.values()])
    return library.to_str()


def _complete(found: dict[str, Any], field: str, folder: Path, special: Mapping[str, Any]) -> None:
    """Settle which file says what a field is."""
    own, other = (_content(folder / name, field, given.get(field)) for name, given in ((CONFIG, found), (MAP, special)))
    if other is None:
        return
    first = own if _DECODER in found and own is not None else other
    if own not in (None, other):
        warn_once(f"{folder}: {field} is {own!r:.60} in {CONFIG} and {other!r:.60} in {MAP}; {first!r:.60} is used")
    if first == other and own != other:
        found[field] = special[field]


def _content(path: Path, field: str, value: Any) -> str | None:
    """Return the text of a token that a field of a file names, or None for none."""
    content = token_content(value)
    if content is not None and not isinstance(content, str):
        raise DataError(f"{path}: {field} is {value!r:.60}; give the text of a token")
    return content or None


def _check_known(
    found: dict[str, Any], field: str, folder: Path, special: Mapping[str, Any], texts: Mapping[str, int]
) -> None:
    """Refuse an absent token that a model needs; one that it can do without is named."""
    content = _content(folder / CONFIG, field, found.get(field))
    if content is None or content in texts:
        return
    file = MAP if _content(folder / MAP, field, special.get(field)) == content else CONFIG
    problem = f"{folder / file}: {field} is {content!r:.60}, which is not in the vocabulary"
    if field in _REQUIRED:
        raise DataError(f"{problem}; name a token that is")
    warn_once(f"{problem}; it is not used")


def _end_ids(folder: Path) -> Iterator[int]:
    for name, field in _MODEL_ENDS:
        value = read_object(folder / name).get(field)
        yield from (index for index in (value if isinstance(value, list) else [value]) if type(index) is int)


def _added_ids(parsed: Mapping[str, Any]) -> dict[str, int]:
    return {token["content"]: token["id"] for token in parsed["added_tokens"]}


def _declared(
    config: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]], folder: Path
) -> Iterator[dict[str, Any]]:
    """Yield what added_tokens_decoder, or the older added_tokens.json, has beyond tokenizer.json or otherwise."""
    listed = config.get(_DECODER)
    if isinstance(listed, Mapping):
        for index, token in sorted(listed.items(), key=lambda item: (len(item[0]), item[0])):
            if not isinstance(token, Mapping) or not isinstance(token.get("content"), str) or not token["content"]:
                raise DataError(f"{CONFIG}: {_DECODER}.{index} is {token!r:.60}; give a table with content and flags")
            there = known.get(token["content"])
            if there is None or _flags(there) != _flags(token):
                yield dict(token)
        return
    special = {token["content"] for field in (*FIELDS, *_LISTS) for token in _tokens(config.get(field))}
    for content, _ in sorted(read_object(folder / ADDED).items(), key=lambda item: int(item[1])):
        if content not in known:
            yield {"content": content, "special": content in special}


def _tokens(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the tokens of a field: a text, a table with flags, a list of either, or a table of names to tokens."""
    if isinstance(value, str):
        yield {"content": value}
    elif isinstance(value, Mapping) and isinstance(value.get("content"), str):
        yield dict(value)
    elif isinstance(value, Mapping | list):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _tokens(one)


def _flags(token: Mapping[str, Any]) -> dict[str, bool]:
    """Return a token's flags; without ``normalized``, special tokens are not and others are, as in the library."""
    special = bool(token.get("special", False))
    return {
        **{name: bool(token.get(name, False)) for name in ("lstrip", "rstrip", "single_word")},
        "normalized": bool(token.get("normalized", not special)),
        "special": special,
    }
