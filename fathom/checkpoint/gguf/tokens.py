"""Tokenizers stored in GGUF files: byte-level BPE ("gpt2") and SentencePiece's BPE ("llama")."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

from fathom.checkpoint.gguf.pre_tokenizers import pre_tokenizer, pre_tokenizer_by_name
from fathom.errors import CheckpointError, DataError
from fathom.tokenizer.bpe import Tokenizer
from fathom.tokenizer.chat_templates import DEFAULT, as_config

PREFIX = "tokenizer.ggml."
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5
_ADDED = (_UNKNOWN, _CONTROL, _USER_DEFINED)
_LLAMA_IDS = MappingProxyType({"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0})
"""What a SentencePiece file means where it does not say."""
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>")
"""Control tokens that end a turn in files that name none with eot_token_id."""
_LONGEST = 1024
_SPACE = "▁"
_REMEDY = "convert the model again"


def tokenizer_from_metadata(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """Return the tokenizer, or None where the file has none.

    Raises:
        CheckpointError: it is of a kind that is not built, or contradicts itself; the message names the key.
    """
    model = metadata.get(f"{PREFIX}model", "none")
    if model == "none":
        return None
    if model not in ("gpt2", "llama"):
        raise CheckpointError(
            f"{PREFIX}model: {model!r} is not supported; use a model whose tokenizer is gpt2 or llama"
        )
    vocabulary = _Vocabulary(metadata)
    parsed = vocabulary.byte_level() if model == "gpt2" else vocabulary.sentence_piece()
    config = vocabulary.config(parsed["post_processor"] is not None)
    try:
        return Tokenizer(json.dumps(parsed, ensure_ascii=False), config)
    except DataError:
        raise
    except Exception as error:  # the library raises bare Exception for what it does not like
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{PREFIX}tokens: cannot be used ({reason}); {_REMEDY}") from None


def end_ids(metadata: Mapping[str, Any]) -> frozenset[int]:
    """Return the tokens that end an answer: end of sentence, of turn and of message."""
    if metadata.get(f"{PREFIX}model", "none") == "none":
        return frozenset(token for name in _ENDS if (token := _whole(metadata, name)) is not None)
    return _Vocabulary(metadata).ends()


class _Vocabulary:
    """The lists of a file's tokenizer, checked against each other."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        named = self._list("tokens", str)
        if named is None:
            _refuse("tokens", "is missing")
        self.tokens: list[str] = [token or f"[EMPTY_{index}]" for index, token in enumerate(named)]
        self.ids = {token: index for index, token in enumerate(self.tokens)}
        if len(self.ids) < len(self.tokens):
            twice = next(token for index, token in enumerate(self.tokens) if self.ids[token] != index)
            _refuse("tokens", f"holds {twice!r} twice")
        self.types: list[int] = self._list("token_type", int, beside=self.tokens) or [_NORMAL] * len(self.tokens)

    def _list(self, name: str, *kinds: type, beside: Sequence[str] | None = None) -> Any:
        """Return a list of these types, or None; ``beside`` is a list it must be as long as."""
        value = self._metadata.get(PREFIX + name)
        if value is None:
            return None
        if not isinstance(value, list) or not set(map(type, value)) <= set(kinds):
            _refuse(name, "is not a list of the right type")
        if beside is not None and len(value) != len(beside):
            _refuse(name, f"has {len(value)} entries for {len(beside)} tokens")
        return value

    def _flag(self, name: str, default: bool) -> bool:
        value = self._metadata.get(PREFIX + name, default)
        return value if isinstance(value, bool) else _refuse(name, f"is {value!r}, not true or false")

    def _id(self, name: str) -> int | None:
        """Return a special token's id; one outside the vocabulary counts as none, as in llama.cpp."""
        default = _LLAMA_IDS.get(name) if self._metadata[f"{PREFIX}model"] == "llama" else None
        value = _whole(self._metadata, name)
        value = default if value is None or value >= len(self.tokens) else value
        return None if value is None or value >= len(self.tokens) else value

    def ends(self) -> frozenset[int]:
        """Return the ids that end an answer."""
        declared = {token for name in _ENDS if (token := self._id(name)) is not None}
        if self._id("eot_token_id") is None:
            spelled = (self.ids.get(name) for name in _TURN_ENDS)
            declared |= {token for token in spelled if token is not None and self.types[token] == _CONTROL}
        return frozenset(declared)

    def config(self, adds_bos: bool) -> dict[str, Any]:
        """Return what a tokenizer_config.json would say."""
        end = self._id("eos_token_id")
        if end is None:
            end = min(self.ends(), default=None)
        if end is None:
            _refuse("eos_token_id", "is missing")
        templates = self._templates()
        ids = {"eos_token": end}
        for name, key in (("pad_token", "padding_token_id"), ("unk_token", "unknown_token_id")):
            if (token := self._id(key)) is not None:
                ids[name] = token
        begin = self._id("bos_token_id")
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": None if begin is None else self.tokens[begin],
            **{name: self.tokens[token] for name, token in ids.items()},
            "add_bos_token": adds_bos,
            "clean_up_tokenization_spaces": False,
            **({"chat_template": as_config(templates)} if templates else {}),
        }

    def _templates(self) -> dict[str, str]:
        """Return the chat templates: the one without a name is the default."""
        prefix = "tokenizer.chat_template"
        keys = {key: key.removeprefix(f"{prefix}.") for key in self._metadata if key.startswith(f"{prefix}.")}
        found = {name: self._metadata[key] for key, name in ({prefix: DEFAULT} | keys).items() if key in self._metadata}
        for name, text in found.items():
            if not isinstance(text, str):
                raise CheckpointError(f"{prefix}: the template {name} is {type(text).__name__}, not text; {_REMEDY}")
        return found

    def byte_level(self) -> dict[str, Any]:
        """Return a tokenizer.json over bytes."""
        name = self._metadata.get(f"{PREFIX}pre", "default")
        split = pre_tokenizer_by_name(name if isinstance(name, str) else repr(name))
        listed = self._list("merges", str)
        if listed is None:
            _refuse("merges", "is missing")
        for merge in listed:
            left, _, right = merge.partition(" ")
            if not (left in self.ids and right in self.ids and left + right in self.ids):
                _refuse("merges", f"joins {merge!r}, which are not all tokens")
        return self._document(
            {"merges": listed, "ignore_merges": split.ignore_merges, "unk_token": None, "byte_fallback": False},
            normalizer=None,
            pre_tokenizer=pre_tokenizer(split),
            decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            begins=self._flag("add_bos_token", split.adds_bos),
        )

    def sentence_piece(self) -> dict[str, Any]:
        """Return a tokenizer.json over characters, with byte tokens for those that have none of their own."""
        prefixed = self._flag("add_space_prefix", True)
        unknown = self._id("unknown_token_id")
        spaced = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
        prepend = [{"type": "Prepend", "prepend": _SPACE}] if prefixed else []
        plain = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefixed else []
        return self._document(
            {
                "merges": self._merges_by_score(),
                "ignore_merges": False,
                "unk_token": None if unknown is None else self.tokens[unknown],
                "byte_fallback": True,
            },
            normalizer={"type": "Sequence", "normalizers": [*prepend, spaced]},
            pre_tokenizer=None,
            decoder={"type": "Sequence", "decoders": [plain, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
            begins=self._flag("add_bos_token", True),
        )

    def _merges_by_score(self) -> list[tuple[str, str]]:
        """Return every pair of tokens whose joining is a token, those that join to the best score first.

        SentencePiece joins whichever neighbours make the best token; a list of merges says the same where scores
        differ. Where one token can be made of two pairs, the longer left part goes first.
        """
        scores = self._list("scores", int, float, beside=self.tokens)
        if scores is None:
            _refuse("scores", "is missing")
        normal = {token: index for token, index in self.ids.items() if self.types[index] == _NORMAL}
        longest = max(map(len, normal), default=0)
        if longest > _LONGEST:
            _refuse("tokens", f"has one of {longest} characters, more than {_LONGEST}")
        found = [
            (-scores[index], -cut, token)
            for token, index in normal.items()
            for cut in range(1, len(token))
            if token[:cut] in normal and token[cut:] in normal
        ]
        return [(token[:-cut], token[-cut:]) for _, cut, token in sorted(found)]

    def _document(self, model: Mapping[str, Any], *, begins: bool, **parts: Any) -> dict[str, Any]:
        begin = self._id("bos_token_id") if begins else None
        usual = {"type": "BPE", "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": list(self._added()),
            **parts,
            "post_processor": None if begin is None else _beginning(self.tokens[begin], begin),
            "model": {**usual, "fuse_unk": True, "vocab": self._vocabulary(), **model},
        }

    def _vocabulary(self) -> dict[str, int]:
        """Return the ids that have a token: placeholders such as [PAD99], which fill a padded model up, have none."""
        return {token: index for token, index in self.ids.items() if not self._is_placeholder(index)}

    def _is_placeholder(self, index: int) -> bool:
        return self.types[index] == _UNUSED and self.tokens[index] in (f"[PAD{index}]", f"[EMPTY_{index}]")

    def _added(self) -> Iterator[dict[str, Any]]:
        options = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for index, (content, kind) in enumerate(zip(self.tokens, self.types, strict=True)):
            if kind in _ADDED:
                yield {"id": index, "content": content, **options, "special": kind != _USER_DEFINED}


def _beginning(token: str, token_id: int) -> dict[str, Any]:
    """Return a post-processor that begins a text with a token."""
    mark = {"SpecialToken": {"id": token, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [mark, first],
        "pair": [mark, first, mark, second],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }


def _whole(metadata: Mapping[str, Any], name: str) -> int | None:
    value = metadata.get(PREFIX + name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        _refuse(name, f"is {value!r}, not a token id")
    return value if value >= 0 else None


def _refuse(name: str, problem: str) -> NoReturn:
    raise CheckpointError(f"{PREFIX}{name}: {problem}; {_REMEDY}")
