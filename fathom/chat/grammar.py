"""Structured output: JSON schemas, regular expressions and grammars as constraints on the next token.

llguidance parses byte by byte; this module gives it the tokens' bytes and excludes special tokens.

Z words of 32 tokens each.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from fathom.chat.json_schema import check_multiples, schema_text, schemas_within
from fathom.errors import DataError
from fathom.extras import install_extra
from fathom.spec import check
from fathom.tokenizer.bpe import Tokenizer
from fathom.tokenizer.definition import vocabulary
from fathom.tokenizer.pieces import PieceTable

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from torch import Tensor

_WHITESPACE = r"[ ]|\n[ \t]{0,64}"  # one space, or a newline with indentation: a model cannot emit it for ever


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarLimits:
    """Limits of a grammar: its length, a schema's depth, and how many compiled grammars are cached.

    ``symbols`` bounds a grammar's size; compiling then takes well under a second. ``lexer_states`` bounds the memory
    of one request's state, 1 to 2 KiB each. Following an ambiguous grammar takes longer with every token, while all
    other requests wait: a request may take ``seconds`` of processor time, and ``token_seconds`` more for each mask
    and each accepted token; its first token may take ``first_seconds``.
    """

    schema_bytes: int = 65_536
    pattern_characters: int = 4_096
    grammar_characters: int = 65_536
    depth: int = 64
    symbols: int = 20_000
    lexer_states: int = 50_000
    compiled: int = 128
    first_seconds: float = 0.5
    seconds: float = 1.0
    token_seconds: float = 0.01

    def __post_init__(self) -> None:
        for name in self.__slots__:
            check.positive(name, getattr(self, name))


class GrammarCompiler:
    """Compiles constraints for one tokenizer, whose vocabulary is read once. Thread-safe.

    ``eos_ids`` may end an answer, by default the tokenizer's end of sequence. Each method returns a new constraint in
    its initial state; compiled grammars are kept in an LRU cache.

    Raises:
        DataError: llguidance is not installed, or an end token is outside the vocabulary.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, eos_ids: Collection[int] | None = None, limits: GrammarLimits | None = None
    ) -> None:
        self.limits = limits or GrammarLimits()
        self._library = _LLGuidance(tokenizer, sorted({tokenizer.eos_id} if eos_ids is None else set(eos_ids)))
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = Lock()

    def json_schema(self, schema: Mapping[str, Any]) -> GrammarConstraint:
        """Return a constraint to JSON that satisfies a schema; ``DataError`` names what is not supported."""
        limits = self.limits
        text = schema_text(schema, max_bytes=limits.schema_bytes, max_depth=limits.depth)
        return self._constraint("json_schema", text)

    def json_object(self) -> GrammarConstraint:
        """Return a constraint to any one JSON object."""
        return self._constraint("json_schema", '{"type": "object"}')

    def regex(self, pattern: str) -> GrammarConstraint:
        r"""Return a constraint to texts that a regular expression matches whole.

        The syntax is Rust's: no look-around, no references to groups, no word boundaries; \d and \w mean Unicode's.
        """
        self._check_length("regex", pattern, self.limits.pattern_characters)
        return self._constraint("regex", pattern)

    def lark(self, grammar: str) -> GrammarConstraint:
        """Return a constraint to the texts of a context-free grammar in llguidance's Lark syntax."""
        self._check_length("grammar", grammar, self.limits.grammar_characters)
        for schema in schemas_within(grammar):
            check_multiples(schema, "grammar")
        return self._constraint("grammar", grammar)

    @staticmethod
    def _check_length(field: str, text: str, limit: int) -> None:
        if not text:
            raise DataError(f"{field}: is empty; give the format of the answer")
        if len(text) > limit:
            raise DataError(f"{field}: {len(text):,} characters exceed the limit of {limit:,}; write it shorter")

    def _constraint(self, kind: str, text: str) -> GrammarConstraint:
        key = f"{kind} {text}"
        with self._lock:
            matcher = self._compiled.pop(key, None)
        matcher = matcher or self._library.compile(kind, text, self.limits)  # others need not wait for it
        with self._lock:
            self._compiled[key] = matcher
            if len(self._compiled) > self.limits.compiled:
                self._compiled.popitem(last=False)
            return GrammarConstraint(self._library, matcher.deep_copy(), _Time(self.limits))


class _Time:
    """The processor time that a request's grammar may still take, all copies of its state together."""

    def __init__(self, limits: GrammarLimits) -> None:
        self._left, self._token_seconds = limits.seconds, limits.token_seconds

    @contextmanager
    def spent(self) -> Iterator[None]:
        """Count what is done within, for which ``token_seconds`` are added.

        Raises:
            DataError: before it, no time is left.
        """
        if self._left <= 0:
            raise DataError("grammar: takes too long to follow, longer with every token; write it without ambiguity")
        began = time.thread_time()
        yield
        self._left += self._token_seconds - (time.thread_time() - began)


class GrammarConstraint:
    """The parser state of one request; implements ``fathom.engine.constraint.TokenConstraint``."""

    def __init__(self, library: _LLGuidance, matcher: LLMatcher, time_left: _Time, *, ended: bool = False) -> None:
        self._library = library
        self._matcher = matcher
        self._time = time_left
        self._ended = ended

    def fill_bitmask(self, bitmask_Z: Tensor) -> bool:
        """Write the mask of allowed tokens. End tokens are allowed when the text is complete.

        Raises:
            DataError: the grammar has become too expensive to follow, or continues with special tokens only.
        """
        with self._time.spent():
            mask = self._library.ends if self._ended else self._allowed()
        words = bitmask_Z.numpy()
        size = min(len(mask), len(words))
        words[:size], words[size:] = mask[:size], 0
        return True

    def _allowed(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.int32)
        self._check()
        allowed = mask[: len(self._library.ordinary)] & self._library.ordinary
        if self._matcher.is_accepting():
            allowed |= self._library.ends
        if not allowed.any():
            raise DataError("grammar: continues with special tokens only; describe text, not tokens")
        return allowed

    def accept(self, token_id: int) -> None:
        """Advance by the sampled token; ``DataError`` if the grammar forbids it, which leaves the state unchanged."""
        with self._time.spent():
            taken = self._take(token_id)
        if not taken:
            self._check()
            raise DataError(f"token {token_id}: the grammar forbids it here; sample what fill_bitmask allows")

    def _take(self, token_id: int) -> bool:
        """Advance by a token unless the grammar forbids it; return whether it did."""
        if token_id in self._library.eos_ids:
            self._ended = self._ended or self._matcher.is_accepting()
            return self._ended
        ordinary = self._library.is_ordinary(token_id)
        return not self._ended and ordinary and self._matcher.try_consume_tokens([token_id]) == 1

    def _check(self) -> None:
        if self._matcher.is_error():
            raise DataError(f"grammar: cannot be followed further ({_reason(self._matcher)}); use a simpler grammar")

    @property
    def finished(self) -> bool:
        """Whether the text is complete and only an end token is allowed."""
        return self._ended or (self._matcher.is_stopped() and not self._matcher.is_error())

    @property
    def complete(self) -> bool:
        """Whether the text may end here; more text may be allowed too."""
        return self._ended or self._matcher.is_accepting()

    def copy(self) -> GrammarConstraint:
        """Return an independent copy in the same state."""
        return GrammarConstraint(self._library, self._matcher.deep_copy(), self._time, ended=self._ended)


_NO_ONE_OF = "oneOf constraints are not supported. Enable 'coerce_one_of' option to approximate oneOf with anyOf"


class _LLGuidance:
    """llguidance with one tokenizer's bytes; special tokens and ids without a token have no bytes."""

    def __init__(self, tokenizer: Tokenizer, eos_ids: Sequence[int]) -> None:
        try:
            import llguidance
        except ImportError:
            raise DataError(
                f"structured output needs llguidance, which is not installed; {install_extra('serve')}"
            ) from None
        self._llguidance = llguidance
        self.eos_ids = frozenset(eos_ids)
        table = TokenBytes(tokenizer, eos_ids)
        size = len(table.tokens)
        outside = [token for token in eos_ids if not 0 <= token < size]
        if outside or not eos_ids:
            raise DataError(f"eos_ids: {outside or 'none given'}; name tokens below {size} that end an answer")
        self.ordinary, self.ends = (
            _words([index for index, piece in enumerate(table.tokens) if piece and index not in self.eos_ids], size),
            _words(eos_ids, size),
        )
        wrapper = llguidance.TokenizerWrapper(table)
        self._tokenizer: LLTokenizer = llguidance.LLTokenizer(wrapper, n_vocab=size, eos_token=list(eos_ids))

    def is_ordinary(self, token_id: int) -> bool:
        """Whether an id is a token of text."""
        word = token_id // 32
        return 0 <= word < len(self.ordinary) and bool(int(self.ordinary[word]) >> token_id % 32 & 1)

    def compile(self, kind: str, text: str, limits: GrammarLimits) -> LLMatcher:
        """Return a matcher in its initial state; ``DataError`` says what is wrong with the grammar."""
        make = self._llguidance.LLMatcher
        if kind == "json_schema":
            try:
                grammar = make.grammar_from_json_schema(
                    text, overrides={"whitespace_flexible": True, "whitespace_pattern": _WHITESPACE, "lenient": False}
                )
            except ValueError as error:  # a number of hundreds of digits
                reason = " ".join(str(error).split())[:120]
                raise DataError(f"{kind}: {reason}; change it or leave that part out") from None
        elif kind == "regex":
            grammar = make.grammar_from_regex(text)
        else:
            grammar = make.grammar_from_lark(text)
        budget = self._llguidance.LLParserLimits(
            max_grammar_size=limits.symbols, max_lexer_states=limits.lexer_states, verbose_errors=False
        )
        matcher = make(self._tokenizer, grammar, log_level=0, limits=budget)
        if matcher.is_error():
            raise DataError(f"{kind}: {_reason(matcher)}; change it or leave that part out")
        self._try(kind, matcher, limits.first_seconds)
        return matcher

    def _try(self, kind: str, matcher: LLMatcher, most_seconds: float) -> None:
        """Follow a grammar for one token, rather than fail at it where other requests wait.

        Raises:
            DataError: it cannot be followed, or takes over ``most_seconds`` of processor time.
        """
        began = time.thread_time()
        mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.int32)
        tried = matcher.deep_copy()
        if not matcher.is_error():
            allowed = np.unpackbits((mask[: len(self.ordinary)] & self.ordinary).view(np.uint8), bitorder="little")
            for token_id in np.flatnonzero(allowed)[:1]:
                tried.try_consume_tokens([int(token_id)])
        if tried.is_error():
            raise DataError(f"{kind}: {_reason(tried)}; change it or leave that part out")
        seconds = time.thread_time() - began
        if seconds > most_seconds:
            problem = f"its first token takes {seconds:.1f} s of {most_seconds:g}"
            raise DataError(f"{kind}: {problem}; describe fewer alternatives and optional parts at once")


class TokenBytes:
    """The tokenizer that llguidance asks for: each token's bytes, and the tokenization of forced text."""

    def __init__(self, tokenizer: Tokenizer, eos_ids: Sequence[int]) -> None:
        parsed = json.loads(tokenizer.tokenizer_json)
        table = PieceTable(parsed, tokenizer.special_ids)
        added = {token["id"]: token["content"] for token in parsed["added_tokens"]}
        given = {*(index for _, index in vocabulary(parsed)), *added}
        silent = tokenizer.special_ids - set(eos_ids)
        self.tokens = [
            table.token_bytes(index, skip_special=False) if index in given and index not in silent else b""
            for index in range(max(given) + 1)
        ]
        self.eos_token_id = eos_ids[0] if eos_ids else tokenizer.eos_id
        self.bos_token_id = tokenizer.bos_id
        self.special_token_ids = list(eos_ids)
        self._tokenizer = tokenizer
        self._single = {piece: index for index, piece in enumerate(self.tokens) if len(piece) == 1}

    def __call__(self, data: bytes) -> list[int]:
        """Return tokens of exactly these bytes, as encoded after other text; single bytes where that differs."""
        text = data.decode(errors="replace")
        for lead in ("", "\n"):  # a newline before the text absorbs the space that some tokenizers add at the start
            ids = self._tokenizer.encode(lead + text, continues=True)
            for start in range(len(lead) + 2):
                if b"".join([self.tokens[index] for index in ids[start:]]) == data:
                    return ids[start:]
        return [self._single[bytes([byte])] for byte in data if bytes([byte]) in self._single]


def _words(ids: Collection[int], size: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    bits = np.zeros((size + 31) // 32 * 32, dtype=np.uint8)
    bits[list(ids)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def _reason(matcher: LLMatcher) -> str:
    """Return what llguidance says in one line; of a regular expression's long message the last word."""
    lines = [line.strip() for line in matcher.get_error().splitlines() if line.strip()]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    reason = (said or lines or ["no reason given"])[0].rstrip(".;")
    return reason.replace(_NO_ONE_OF, "alternatives of oneOf that may overlap cannot be enforced, use anyOf")
