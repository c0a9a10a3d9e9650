"""Tokenizers: encoding, decoding, and the standard tokenizer.json on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import tokenizers

from fathom.errors import DataError, TooManyTokens
from fathom.files import json_text, read_text, sha256, write_text
from fathom.tokenizer import special
from fathom.tokenizer.chat_templates import (
    DEFAULT,
    as_config,
    choose_template,
    named_or_text,
    templates_of,
    with_template_files,
)
from fathom.tokenizer.cutting import MAX_STRETCH, PUNCTUATION, cut
from fathom.tokenizer.default_template import DEFAULT_TEMPLATE
from fathom.tokenizer.definition import (
    LARGEST_DEFINITION,
    longest_token,
    make_tokenizer_remedy,
    model_kind,
    parse_definition,
    unknown_id,
)
from fathom.tokenizer.guarded import special_spans
from fathom.tokenizer.library import library_errors
from fathom.tokenizer.limits import check_limits
from fathom.tokenizer.named_tokens import (
    CONFIG,
    FIELDS,
    read_object,
    token_content,
    with_added_tokens,
    with_named_tokens,
)
from fathom.tokenizer.pieces import PieceTable, StreamDecoder
from fathom.tokenizer.plain import without_special

T = TypeVar("T")


class Tokenizer:
    """A tokenizer over bytes, over characters with byte fallback as in SentencePiece, or over pieces or words.

    Encoding and decoding any text is lossless with the first two; but SentencePiece reads U+2581 in a text as a space,
    and some of its files drop a space at the start. The others have a token for what they do not know. Text is never
    encoded as a special token unless ``allow_special`` is set. No method adds a beginning-of-sentence token; callers
    put ``prefix_ids`` first. ``bos_id`` is None where the configuration names no such token.
    """

    def __init__(self, tokenizer_json: str, config: Mapping[str, Any] | None = None) -> None:
        self._json = tokenizer_json
        parsed = parse_definition(tokenizer_json)
        check_limits(parsed)
        self._kind = model_kind(parsed)
        with library_errors():
            self._with_special = tokenizers.Tokenizer.from_str(tokenizer_json)
            self._with_special.no_truncation()
            self._with_special.no_padding()
            self._plain, self.special_tokens = without_special(self._with_special, parsed)
        self._unknown_id = unknown_id(parsed)
        self._adds_space_at_start = '"prepend_scheme": "first"' in json.dumps(parsed.get("pre_tokenizer"))
        self.special_ids = frozenset(self.special_tokens.values())
        self._pieces = PieceTable(parsed, self.special_ids)
        self._longest_token = longest_token(parsed)
        self._config = dict(config or {})
        self._templates = templates_of(self._config)
        self.vocab_size: int = self._with_special.get_vocab_size(with_added_tokens=True)
        self.bos_id = self._named("bos_token", special.BEGIN)
        end = self._named("eos_token", special.END)
        if end is None:
            raise DataError(
                "tokenizer_config.json: eos_token names no token of the vocabulary; name one that ends a text"
            )
        self.eos_id: int = end
        pad = self._named("pad_token", special.PAD, lenient=True)
        self.pad_id: int = end if pad is None else pad

    def __repr__(self) -> str:
        template = "with" if self.can_chat else "without"
        return f"<Tokenizer {self._kind}: {self.vocab_size} tokens, {template} a chat template>"

    def _named(self, field: str, usual: str, *, lenient: bool = False) -> int | None:
        """Return the id of the token that a field names; None where it names none, or the default is absent."""
        value = self._config.get(field, usual)
        content = token_content(value)
        token_id = self._with_special.token_to_id(content) if isinstance(content, str) else None
        if token_id is None and content is not None and field in self._config and not lenient:
            problem = f"{field} is {content!r:.60}, which is not in the vocabulary"
            raise DataError(f"tokenizer_config.json: {problem}; name a token that is")
        return token_id

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Open a tokenizer.json, or the folder that holds it beside tokenizer_config.json."""
        file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
        try:
            return cls.from_definition(read_text(file, LARGEST_DEFINITION), file.parent)
        except FileNotFoundError:
            remedy = make_tokenizer_remedy(file.parent) or "train one or check the path"
            raise DataError(f"{file}: no such tokenizer; {remedy}") from None
        except DataError:
            raise
        except Exception as error:  # the library raises bare Exception for a malformed file
            reason = " ".join(str(error).split())
            raise DataError(f"{file}: not a usable tokenizer ({reason}); get the file again or train anew") from None

    @classmethod
    def from_definition(cls, text: str, folder: Path, defaults: Mapping[str, Any] | None = None) -> Tokenizer:
        """Return the tokenizer of a tokenizer.json's text and the files in a folder, which come before ``defaults``."""
        parsed = parse_definition(text)
        check_limits(parsed)
        config = with_template_files({**(defaults or {}), **read_object(folder / CONFIG)}, folder)
        config = with_named_tokens(folder, parsed, config)
        with library_errors():
            completed = with_added_tokens(text, parsed, config, folder)
        return cls(completed, config)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer opens too.

        Raises:
            ResourceError: the file system refuses.
        """
        folder = Path(directory)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.id_to_token(self.bos_id) or None,
            "eos_token": self.id_to_token(self.eos_id),
            "pad_token": self.id_to_token(self.pad_id),
            "clean_up_tokenization_spaces": False,
        } | self._config
        if self.can_chat:
            config["chat_template"] = as_config(self._templates) if self._templates else DEFAULT_TEMPLATE
        write_text(folder / "tokenizer.json", self._json)
        write_text(folder / "tokenizer_config.json", json_text(config, indent=2))

    def unused_ids(self, vocab_size: int) -> tuple[int, ...]:
        """Return the ids below a model's ``vocab_size`` that have no token: padding, or gaps."""
        used = set(self._with_special.get_vocab(with_added_tokens=True).values())
        return tuple(token_id for token_id in range(vocab_size) if token_id not in used)

    @property
    def chat_template(self) -> str:
        """The jinja2 chat template of conversations without tools: the model's own, or Fathom's where it has none.

        Raises:
            DataError: the model has several templates, and none of them is the default.
        """
        return choose_template(self._templates, tools=False) if self._templates else DEFAULT_TEMPLATE

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """The templates that the model brings, by name; ``default`` is the one without a name."""
        return MappingProxyType(self._templates)

    def choose_template(self, *, tools: bool) -> str:
        """Return the template of conversations with tools or without; ``DataError`` where the model has no default."""
        return choose_template(self._templates, tools=True) if tools and self._templates else self.chat_template

    @property
    def shown_template(self) -> str | None:
        """The template to show: that of conversations without tools, or the first of several without a default."""
        if DEFAULT in self._templates or not self._templates:
            return self.chat_template if self.can_chat else None
        return next(iter(self._templates.values()))

    def with_template(self, template: str) -> Tokenizer:
        """Return this tokenizer with one template only: one of its own by name, or the text of another.

        Raises:
            DataError: it is neither.
        """
        return Tokenizer(self._json, {**self._config, "chat_template": named_or_text(self._templates, template)})

    @property
    def can_chat(self) -> bool:
        """Whether this vocabulary has a chat template: its own, or the default with its turn markers."""
        return bool(self._templates) or {special.USER, special.ASSISTANT} <= self.special_tokens.keys()

    @property
    def template_variables(self) -> dict[str, str]:
        """The special tokens that chat templates may name, as in transformers: those that the vocabulary has."""
        named = {name: self._config.get(name) for name in FIELDS}
        extra = self._config.get("extra_special_tokens")
        named |= extra if isinstance(extra, Mapping) else {}
        written = {name: token_content(value) for name, value in named.items()}
        written |= {"bos_token": self.id_to_token(self.bos_id), "eos_token": self.id_to_token(self.eos_id)}
        return {name: value for name, value in written.items() if isinstance(value, str) and value}

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """The tokens that the tokenizer adds before a text: its beginning-of-sentence token, or none.

        ``add_bos_token`` of the configuration decides where it is given, the post-processor of tokenizer.json else.
        """
        if self.bos_id is None:
            return ()
        declared = self._config.get("add_bos_token")
        if isinstance(declared, bool):
            return (self.bos_id,) if declared else ()
        first = self._checked(lambda: self._with_special.encode("a").ids[:1])
        return (self.bos_id,) if first == [self.bos_id] else ()

    def id_to_token(self, token_id: int | None) -> str:
        """Return a token as the vocabulary writes it; "" for None or an id without a token."""
        found = None if token_id is None else self._with_special.id_to_token(token_id)
        return found or ""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token stands for, which may be part of a character; for a special token, its text."""
        return self._pieces.token_bytes(token_id, skip_special=False)

    @property
    def tokenizer_json(self) -> str:
        """The tokenizer.json text."""
        return self._json

    @property
    def config(self) -> Mapping[str, Any]:
        """The contents of tokenizer_config.json."""
        return MappingProxyType(self._config)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the tokenizer.json text, to tell whether token shards belong to it."""
        return sha256(self._json)

    def encode(
        self, text: str, *, allow_special: bool = False, continues: bool = False, max_tokens: int | None = None
    ) -> list[int]:
        """Return the ids of one text; a long one is encoded piece by piece (``cutting``).

        ``allow_special`` encodes the text of special tokens as those tokens. ``continues`` says that other tokens
        precede: a tokenizer that adds a space at the start of a text then adds none.

        Raises:
            DataError: the text has lone surrogates; or, with ``max_tokens``, a stretch too long to be read at once.
            TooManyTokens: there are more than ``max_tokens``.
        """
        library = self._inner if continues and not allow_special else self._library(allow_special)
        return self._in_pieces(text, lambda piece: self._encode([piece], library)[0], max_tokens)

    def _in_pieces(self, text: str, encode: Callable[[str], list[int]], max_tokens: int | None) -> list[int]:
        """Return the ids of a text, whose pieces ``encode`` encodes."""
        ids: list[int] = []
        read = 0
        searched = None if max_tokens is None else MAX_STRETCH
        pieces = cut(
            text,
            encode,
            at_punctuation=self._splits_at_punctuation,
            longest_token=self._longest_token,
            searched=searched,
        )
        for piece in pieces:
            if max_tokens is not None and len(piece) > MAX_STRETCH:
                raise DataError(
                    f"text: {len(piece)} characters without a space between words exceed {MAX_STRETCH}; break them up"
                )
            ids += encode(piece)
            read += len(piece)
            if max_tokens is not None and len(ids) > max_tokens:
                raise TooManyTokens(len(ids) * len(text) // max(read, 1))
        return ids

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
        """Return the ids of many texts, encoded in parallel by the library."""
        return self._encode(texts, self._library(allow_special))

    def encode_guarded(self, text: str, guard: str, *, max_tokens: int | None = None) -> list[int]:
        """Return the ids of a text whose special tokens count, unless they begin with a guarded character.

        ``guard`` is a character that stands after each character of foreign text with which a special token could
        begin, and nowhere else; "" for none. Where foreign text spells no special token, the ids are those of
        ``encode`` with ``allow_special``; else the text between the special tokens is encoded piece by piece.
        Raises as ``encode``.
        """
        return self._in_pieces(text, lambda piece: self._guarded_piece(piece, guard), max_tokens)

    def _guarded_piece(self, text: str, guard: str) -> list[int]:
        parts = text.split(guard) if guard else [text]
        bare = "".join(parts)
        whole = self._checked(lambda: self._with_special.encode(bare, add_special_tokens=False))
        ids: list[int] = whole.ids
        if self.special_ids.isdisjoint(ids):
            return ids
        guarded = frozenset(accumulate(map(len, parts[:-1]), initial=-1))  # where a guarded character is in ``bare``
        names = {token_id: content for content, token_id in self.special_tokens.items()}
        spans = special_spans(bare, whole, names, self._unknown_id)
        if all(span is not None and span.begins not in guarded for span in spans):
            return ids
        whole = self._checked(lambda: self._with_special.encode(text, add_special_tokens=False))
        ids = []
        end = 0
        for span in special_spans(text, whole, names, self._unknown_id):
            if span is None or (guard and guard in text[span.start : span.end]):
                continue
            ids += self._piece(text[end : span.start].replace(guard, ""), continues=bool(ids))
            ids.append(span.token_id)
            end = span.end
        return ids + self._piece(text[end:].replace(guard, ""), continues=bool(ids))

    def _piece(self, text: str, *, continues: bool) -> list[int]:
        return self.encode(text, continues=continues) if text else []

    def _library(self, allow_special: bool) -> tokenizers.Tokenizer:
        return self._with_special if allow_special else self._plain

    @cached_property
    def _splits_at_punctuation(self) -> bool:
        """Whether the pre-tokenizer splits between a letter and each of the usual punctuation marks."""
        splitter = self._plain.pre_tokenizer
        if splitter is None:
            return False
        return self._checked(lambda: all(len(splitter.pre_tokenize_str("a" + mark)) > 1 for mark in PUNCTUATION))

    @cached_property
    def _inner(self) -> tokenizers.Tokenizer:
        """``_plain`` for text after other tokens; the same for most tokenizers."""
        if not self._adds_space_at_start:
            return self._plain
        parsed = json.loads(self._plain.to_str())
        splits = parsed["pre_tokenizer"] or {}
        first = [part for part in splits.get("pretokenizers", [splits]) if part.get("prepend_scheme") == "first"]
        for part in first:
            part["prepend_scheme"] = "never"
        return tokenizers.Tokenizer.from_str(json.dumps(parsed))

    def _encode(self, texts: Sequence[str], library: tokenizers.Tokenizer) -> list[list[int]]:
        batch = self._checked(lambda: library.encode_batch_fast(list(texts), add_special_tokens=False))
        return [encoding.ids for encoding in batch]

    @staticmethod
    def _checked(encode: Callable[[], T]) -> T:
        try:
            with library_errors(plain=True):
                return encode()
        except (UnicodeEncodeError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"text: cannot be encoded ({reason}); pass str without lone surrogates") from None

    def decode(self, ids: Sequence[int], *, skip_special: bool = True, continues: bool = False) -> str:
        """Return the text of ids. Bytes that are not UTF-8 and ids without a token become U+FFFD.

        The space that SentencePiece adds at the start is dropped, unless the ids continue a text.
        """
        return self._pieces.decode(ids, skip_special=skip_special, continues=continues)

    def stream(self, *, skip_special: bool = True, continues: bool = False) -> StreamDecoder:
        """Return a decoder that takes one id at a time and never emits part of a character."""
        return StreamDecoder(self._pieces, skip_special=skip_special, continues=continues)
