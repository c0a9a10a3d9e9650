"""Word problems with a numeric answer: the last number of the generated text is the answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from fathom.spec.sampling import Completion, Sampler, SamplingParams

_NUMBER = re.compile(r"(?:(?<![\d)])-)?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)")
MARKER = "####"


@dataclass(frozen=True, slots=True)
class ProblemResult:
    """The text generated for a problem, its final number and the verdict."""

    text: str
    number: str | None
    correct: bool
    finished: bool


def final_number(text: str) -> str | None:
    """Return the first number after the last ``####``, else the last number of the text, without its commas.

    A marker without a number after it is ignored.
    """
    marked = _NUMBER.search(text.rpartition(MARKER)[2]) if MARKER in text else None
    if marked is not None:
        return marked[0].replace(",", "")
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "") if found else None


def same_number(given: str | None, expected: str) -> bool:
    """Whether two spellings are one number: 18, 18.00 and 1,800 for 1800."""
    try:
        return given is not None and Decimal(given.replace(",", "")) == Decimal(expected.replace(",", ""))
    except InvalidOperation:
        return False


def judge_number(text: str, expected: str) -> tuple[str | None, bool]:
    """Return the final number of a text, and whether it is the expected one."""
    number = final_number(text)
    return number, same_number(number, expected)


def solve(
    sampler: Sampler,
    prompts: Sequence[Sequence[int]],
    expected: Sequence[str],
    decode: Callable[[Sequence[int]], str],
    *,
    params: SamplingParams,
    batch_size: int = 16,
    judge: Callable[[str, str], tuple[str | None, bool]] = judge_number,
    on_result: Callable[[int, ProblemResult], None] | None = None,
) -> list[ProblemResult]:
    """Generate and judge an answer to every prompt, ``batch_size`` prompts at once, the shortest first.

    ``judge`` takes a text and what is expected, and returns the answer it read and whether that is right. Temperature 0
    makes the result reproducible. ``on_result`` is called with the index and result of every problem.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    results: dict[int, ProblemResult] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        completions = sampler.sample([prompts[index] for index in batch], params)
        for index, completion in zip(batch, completions, strict=True):
            results[index] = _judge(completion, expected[index], decode, judge)
            if on_result is not None:
                on_result(index, results[index])
    return [results[index] for index in range(len(prompts))]


def _judge(
    completion: Completion,
    expected: str,
    decode: Callable[[Sequence[int]], str],
    judge: Callable[[str, str], tuple[str | None, bool]],
) -> ProblemResult:
    text = decode(completion.token_ids)
    answer, correct = judge(text, expected)
    return ProblemResult(text, answer, correct, completion.finish_reason == "stop")
