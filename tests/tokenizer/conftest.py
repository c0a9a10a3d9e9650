from __future__ import annotations

import pytest

from fathom.tokenizer import Tokenizer, train_bpe

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog barks back.\n" * 3,
    "def area(width, height):\n    return width * height\n\n\nprint(area(3, 14))\n" * 3,
    "天下大势，分久必合，合久必分。天下大势，分久必合。\n" * 3,
    "<think>the the the</think> <think> <｜User｜> <｜User｜> 2024 2024 2025\n" * 8,
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_bpe(TEXTS, vocab_size=420)
