"""Answers judged by their last number, from a sampler that returns given texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from fathom.evals.word_problems import final_number, same_number, solve
from fathom.spec.sampling import Completion, SamplingParams


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7\n#### 7", "7"),
        ("#### 1,234 dollars, or 99", "1234"),
        ("#### first\nno, #### -5.50.", "-5.50"),
        ("She pays $2,000,000.", "2000000"),
        ("3 apples, 12 pears and 5.5 kg.", "5.5"),
        ("10-4", "4"),
        ("10 - 4 = -6", "-6"),
        ("it is .5", ".5"),
        ("there are 7 ####", "7"),
        ("none at all", None),
        ("", None),
    ],
)
def test_the_number_after_the_marker_or_the_last_one_counts(text: str, number: str | None) -> None:
    assert final_number(text) == number


def test_numbers_are_compared_as_numbers() -> None:
    assert same_number("18.00", "18")
    assert same_number("1800", "1,800")
    assert not same_number("18.5", "18")
    assert not same_number(None, "18")


class Scripted:
    """Answers a prompt by adding 100 to its tokens; remembers the batches it was given."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def sample(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Completion]:
        self.batches.append(len(prompts))
        return [
            Completion(
                token_ids=tuple(token + 100 for token in prompt),
                logprobs=tuple(0.0 for _ in prompt),
                finish_reason="stop" if len(prompt) > 1 else "length",
            )
            for prompt in prompts
        ]

    def stream(self, prompt: Sequence[int], params: SamplingParams) -> Iterator[int]:
        yield from ()


def test_problems_are_solved_in_batches_and_come_back_in_their_order() -> None:
    sampler, heard = Scripted(), list[int]()
    results = solve(
        sampler,
        [[3, 4, 5], [1], [2, 2]],
        ["105", "101", "7"],
        lambda ids: " ".join(map(str, ids)),
        params=SamplingParams(temperature=0),
        batch_size=2,
        on_result=lambda index, result: heard.append(index),
    )
    assert sampler.batches == [2, 1]
    assert heard == [1, 2, 0]
    assert [(r.text, r.number, r.correct, r.finished) for r in results] == [
        ("103 104 105", "105", True, True),
        ("101", "101", True, False),
        ("102 102", "102", False, True),
    ]
