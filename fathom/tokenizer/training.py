"""Training of byte-level BPE vocabularies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

from fathom.errors import DataError, SpecError
from fathom.progress import NULL_PROGRESS, Progress
from fathom.tokenizer import special
from fathom.tokenizer.bpe import Tokenizer
from fathom.tokenizer.patterns import DEEPSEEK_V3_SPLITS

SPLIT_PATTERNS = DEEPSEEK_V3_SPLITS
"""DeepSeek-V3's pre-tokenizer patterns, applied in order, as in its tokenizer.json; llama.cpp knows them by name."""
_TRAINING_PATTERNS = (r"\p{N}", *SPLIT_PATTERNS[1:])
"""Patterns while training: single digits, so that every digit is a token of its own (LLM §2.1)."""
_MAX_TOKEN_BYTES = 48
_MINIMUM_VOCABULARY = 256 + len(special.SPECIAL_TOKENS)


def train_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    progress: Progress = NULL_PROGRESS,
) -> Tokenizer:
    """Train a vocabulary of at most ``vocab_size`` tokens, special ones included.

    Text is pre-tokenized as by DeepSeek-V3, which other engines support; in training every digit is split off, so that
    it is a token of its own (LLM §2.1). Special tokens take ids 0 upwards, bytes follow, then merges. The same texts
    give the same vocabulary. Texts too few to fill the vocabulary give a smaller one; none at all raises ``DataError``.
    """
    if vocab_size < _MINIMUM_VOCABULARY:
        raise SpecError(
            "vocab_size", f"{vocab_size} cannot hold bytes and special tokens", f"use at least {_MINIMUM_VOCABULARY}"
        )
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = _splitting(_TRAINING_PATTERNS)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in special.SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=_MAX_TOKEN_BYTES,
    )
    counted = _Counted(texts, progress)
    library.train_from_iterator(counted, trainer=trainer)
    library.pre_tokenizer = _splitting(SPLIT_PATTERNS)
    if not counted.bytes:
        raise DataError("texts: nothing to train a tokenizer on; give at least one text that is not empty")
    library.post_processor = processors.TemplateProcessing(
        single=f"{special.BEGIN} $A",
        pair=f"{special.BEGIN} $A {special.BEGIN} $B",
        special_tokens=[(special.BEGIN, special.SPECIAL_TOKENS.index(special.BEGIN))],
    )
    return Tokenizer(library.to_str(pretty=True))


def _splitting(patterns: Sequence[str]) -> pre_tokenizers.PreTokenizer:
    """Split by each pattern in turn, then map bytes to characters."""
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


class _Counted:
    """Yields texts in batches and reports the bytes read so far."""

    def __init__(self, texts: Iterable[str], progress: Progress, batch: int = 256) -> None:
        self._texts = texts
        self._progress = progress
        self._batch = batch
        self.bytes = 0

    def __iter__(self) -> Iterator[list[str]]:
        pending: list[str] = []
        for text in self._texts:
            pending.append(text)
            self.bytes += len(text.encode("utf-8", errors="replace"))
            if len(pending) == self._batch:
                yield pending
                pending = []
                self._report()
        yield pending
        self._report()

    def _report(self) -> None:
        self._progress.update(self.bytes, None, "bytes", phase="tokenizer")
