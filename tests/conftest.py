"""Tests never depend on time, on the language of the machine or on what is fast there.

They must not fail where the code is right.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from fathom.tokenizer import Tokenizer, train_bpe
from tests.command_line import call
from tests.published import publish

__all__ = ["call", "publish"]

pytest_plugins = ["tests.plugins.interrupts", "tests.plugins.leftovers", "tests.plugins.native", "tests.plugins.skips"]

os.environ["FATHOM_LANG"] = "en"
os.environ["FATHOM_PRODUCTS"] = "blas"

settings.register_profile("fathom", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fathom")

_TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog barks back.\n" * 3,
    "def area(width, height):\n    return width * height\n\n\nprint(area(3, 14))\n" * 3,
    "天下大势，分久必合，合久必分。天下大势，分久必合。\n" * 3,
    "<think>the the the</think> <think> <｜User｜> <｜User｜> 2024 2024 2025\n" * 8,
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_bpe(_TEXTS, vocab_size=420)


@pytest.fixture(scope="session")
def native() -> None:
    """The library is needed: without it a test is skipped, and fails in CI."""
    from fathom.kernels.native import library

    if library.available():
        return
    reason = f"the native library cannot be used: {library.unavailable_reason()}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
