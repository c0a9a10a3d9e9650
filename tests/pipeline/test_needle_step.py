"""The questions of the needle step: every cell asked, the blank prompt the same text without the needle."""

from __future__ import annotations

import numpy as np
import pytest

from fathom.pipeline.steps.needle import make_trials
from fathom.spec.recipe import NeedleStep
from fathom.tokenizer import Tokenizer, train_bpe

SENTENCES = [f"The river number {i} runs to the sea and the secret stays." for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(SENTENCES, vocab_size=400)


def test_the_blank_prompt_lacks_the_needle_and_nothing_else(tokenizer: Tokenizer) -> None:
    haystack = np.array(tokenizer.encode(" ".join(SENTENCES)))
    step = NeedleStep(lengths=(120, 200), depths=(0.0, 0.5, 1.0), trials=2)
    trials = make_trials(step, tokenizer, haystack)
    assert [(t.length, t.depth) for t in trials] == [
        (n, d) for n in step.lengths for d in step.depths for _ in range(2)
    ]
    for trial in trials:
        full, blank = tokenizer.decode(trial.prompt_ids), tokenizer.decode(trial.blank_prompt_ids)
        number = tokenizer.decode(trial.answer_ids)
        key = full.rpartition("The secret number of ")[2].removesuffix(" is ")
        assert len(trial.prompt_ids) + len(trial.answer_ids) == trial.length
        assert number in full
        assert number not in blank
        assert full.replace(f"\nThe secret number of {key} is {number}.\n", "", 1) == blank
    assert trials == make_trials(step, tokenizer, haystack)
    assert len({tuple(t.answer_ids) for t in trials}) > 6
