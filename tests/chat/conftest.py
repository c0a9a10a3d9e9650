from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from fathom.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def theirs(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The shared tokenizer as transformers opens it."""
    folder: Path = tmp_path_factory.mktemp("theirs")
    tokenizer.save(folder)
    return AutoTokenizer.from_pretrained(folder)
