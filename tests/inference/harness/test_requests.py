"""What the harness asks, made ready for scoring and sampling; needs no lm-eval."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import ContextError, DataError, SpecError
from fathom.inference.harness import grouping
from fathom.inference.harness.grouping import ScoringRequest, grouped
from fathom.inference.harness.responses import Responses
from fathom.inference.harness.runs import open_harness_tasks
from fathom.inference.harness.sampling import read_generation

MAX_LENGTH = 12
TOKENS = st.integers(0, 2)
REQUESTS = st.lists(
    st.builds(
        ScoringRequest,
        st.just(("context", " continuation")),
        st.lists(TOKENS, min_size=1, max_size=16).map(tuple),
        st.lists(TOKENS, min_size=1, max_size=MAX_LENGTH).map(tuple),
    ),
    max_size=12,
)


@given(REQUESTS, st.integers(1, 30))
def test_every_request_is_one_choice_after_what_fits_of_its_context(
    requests: Sequence[ScoringRequest], at_once: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "TOKENS_AT_ONCE", at_once)
        groups = grouped(requests, MAX_LENGTH)
    places = list(itertools.chain.from_iterable(group.places for group in groups))
    assert sorted(places) == list(range(len(requests)))
    for group in groups:
        choices, context = group.question.choices_ids, list(group.question.context_ids)
        longest = max(map(len, choices))
        assert len(choices) == 1 or len(choices) * longest <= at_once
        assert len(context) + longest <= MAX_LENGTH + 1
        for place, choice in zip(group.places, choices, strict=True):
            asked = requests[place]
            assert choice == asked.continuation
            assert context == list(asked.context + asked.continuation)[-(MAX_LENGTH + 1) :][: -len(choice)]


def test_choices_of_one_context_are_one_question() -> None:
    context, other = (1, 2), (2, 1)
    asked = [ScoringRequest(None, each, (token,)) for each, token in ((context, 0), (other, 1), (context, 2))]
    assert [group.places for group in grouped(asked, MAX_LENGTH)] == [[0, 2], [1]]


def test_continuations_that_cannot_be_scored_are_refused() -> None:
    with pytest.raises(DataError, match=r"' yes' has no tokens of its own .*; begin it with a space"):
        grouped([ScoringRequest(("Is it?", " yes"), (1,), ())], MAX_LENGTH)
    with pytest.raises(ContextError, match="has 13 tokens, more than the model's context of 12"):
        grouped([ScoringRequest(("a", "b"), (1,), (1,) * 13)], MAX_LENGTH)


@pytest.mark.parametrize(
    ("given_settings", "temperature", "most", "stop"),
    [
        ({"until": "\n"}, 0.0, 256, ("\n",)),
        ({"until": ["\n\n", "", "Q:", "Q:"], "do_sample": False, "temperature": 0.7}, 0.0, 256, ("\n\n", "Q:")),
        ({"do_sample": True, "max_gen_toks": 9, "max_tokens": 3}, 1.0, 9, ()),
        ({"temperature": 0.6, "max_new_tokens": "7", "num_beams": 1}, 0.6, 7, ()),
    ],
)
def test_generation_settings_are_read_as_the_harness_means_them(
    given_settings: dict[str, Any], temperature: float, most: int, stop: tuple[str, ...]
) -> None:
    read = read_generation(given_settings)
    assert (read.sampling["temperature"], read.max_tokens, read.stop) == (temperature, most, stop)


def test_what_the_engine_does_not_do_is_refused() -> None:
    with pytest.raises(SpecError, match=r"generation_kwargs\.num_beams: 4 is not supported"):
        read_generation({"num_beams": 4})
    with pytest.raises(SpecError, match=r"generation_kwargs\.max_gen_toks"):
        read_generation({"max_gen_toks": 0})
    assert read_generation({"top_p": 0.9, "seed": 3}).sampling == {"temperature": 0.0, "top_p": 0.9, "seed": 3}


def test_kept_answers_come_back_once_each_and_in_order() -> None:
    made: list[dict[str, Any]] = []
    first = Responses(add=made.append)
    arguments = ("Question", {"until": ["\n"]})
    for answer in ("a", "b"):
        assert first.take("generate_until", arguments) is None
        first.keep("generate_until", arguments, answer)
    again = Responses(made)
    assert again.take("loglikelihood", arguments) is None
    assert [again.take("generate_until", arguments) for _ in range(3)] == ["a", "b", None]


def test_without_the_package_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    with pytest.raises(DataError, match=r"--lm-eval needs lm_eval.*, which is not installed; .*install.*evals"):
        open_harness_tasks(["hellaswag"])
