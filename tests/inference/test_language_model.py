"""``LanguageModel`` on token ids as callers have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import fathom
from fathom.errors import ContextError, SpecError
from fathom.inference.language_model import LanguageModel
from fathom.spec import SamplingParams

IDS = [5, 9, 2, 40, 7]
PARAMS = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)


@pytest.fixture
def model(publish) -> LanguageModel:  # type: ignore[no-untyped-def]
    return fathom.load(publish("tiny-llama"), dtype="float32")


CALLS: dict[str, Callable[[LanguageModel, Any], Any]] = {
    "logits": lambda model, ids: model.logits(ids).tolist(),
    "generate": lambda model, ids: model.generate(ids, PARAMS),
    "stream": lambda model, ids: list(model.stream(ids, PARAMS)),
    "engine.sample": lambda model, ids: model.engine.sample([ids], PARAMS)[0].token_ids,
    "engine.stream": lambda model, ids: list(model.engine.stream(ids, PARAMS)),
}


@pytest.mark.parametrize("call", CALLS)
def test_lists_arrays_and_tensors_give_the_same(model: LanguageModel, call: str) -> None:
    expected = CALLS[call](model, IDS)
    for ids in (tuple(IDS), np.array(IDS), np.array(IDS, np.uint16), torch.tensor(IDS), torch.tensor(IDS).int()):
        assert CALLS[call](model, ids) == expected
    assert CALLS[call](model, list(np.array(IDS))) == expected
    assert CALLS[call](model, list(torch.tensor(IDS))) == expected


@pytest.mark.parametrize("call", [name for name in CALLS if name != "generate"])
def test_text_is_refused_with_a_remedy_that_works(model: LanguageModel, call: str) -> None:
    with pytest.raises(SpecError, match=r"is text, 'the dog'; give token ids: m\.tokenizer\.encode\(text\)"):
        CALLS[call](model, "the dog")
    assert CALLS[call](model, model.tokenizer.encode("the dog"))


@pytest.mark.parametrize("call", CALLS)
def test_nothing_and_batches_are_refused(model: LanguageModel, call: str) -> None:
    for empty in ([], np.array([], int), torch.tensor([], dtype=torch.int64)):
        with pytest.raises(ContextError, match="has no tokens"):
            CALLS[call](model, empty)
    with pytest.raises(SpecError, match=r"has the shape \(1, 5\); give one sequence, such as token_ids\[0\]"):
        CALLS[call](model, torch.tensor([IDS]))


@pytest.mark.parametrize("call", CALLS)
def test_ids_outside_the_vocabulary_are_refused(model: LanguageModel, call: str) -> None:
    for token in (-1, model.spec.vocab_size):
        with pytest.raises(SpecError, match=f"{token} is outside the vocabulary of {model.spec.vocab_size}"):
            CALLS[call](model, np.array([1, token]))
