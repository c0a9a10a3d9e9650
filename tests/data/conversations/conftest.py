from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer as Library

from fathom.tokenizer import Tokenizer, train_bpe

TEXTS = ["What is two plus three? It is five, since three follows two.\n### User: no\n\n\n" * 4, "天下大势\n" * 4]
MARKERS = ["<|EOT|>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]"]


@pytest.fixture(scope="session")
def ours() -> Tokenizer:
    """Return a tokenizer with our special tokens alone: other families' markers are text to it."""
    return train_bpe(TEXTS, vocab_size=420)


@pytest.fixture(scope="session")
def all_markers_tokenizer(ours: Tokenizer) -> Tokenizer:
    """Return a tokenizer that has the markers of every family as special tokens."""
    library = Library.from_str(ours.tokenizer_json)
    library.add_special_tokens(MARKERS)
    return Tokenizer(library.to_str(), json.loads(json.dumps(dict(ours.config))))
