"""What a tasks step says of its answers: figures with intervals, computed from the records and nothing else.

A record is one problem as one stage answered it, plain JSON: ``id``, ``question``, ``expected``, and ``answers``, each
with ``text``, ``answer`` (what was read from the text, or None), ``correct``, ``finished``, ``tokens``, ``rewards``
(each part before it is weighted), ``failures``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fathom.evals.pass_at_k import Estimate, ProblemSamples, mean, paired_difference, summary
from fathom.inference.answer_sampling import count_failures

Record = Mapping[str, Any]
EXAMPLES = 3
"""Problems of each task whose answers are shown: the first ones, right or wrong."""


def stage_score(records: Sequence[Record], seconds: float) -> dict[str, Any]:
    """Return accuracy (``low`` to ``high``) over ``n`` problems, and what else is known of a stage on a task.

    With several answers to each problem, accuracy is the mean share of right ones; pass@k is there for every power
    of two and for all answers, and so is majority@k where problems have an answer to vote for.
    """
    answers = [answer for record in records for answer in record["answers"]]
    accuracy = mean(_shares(records))
    score: dict[str, Any] = {
        "accuracy": accuracy.value,
        "low": accuracy.low,
        "high": accuracy.high,
        "n": len(records),
        "samples": len(records[0]["answers"]),
    }
    return (
        score
        | _at_k(records)
        | {
            "tokens": sum(answer["tokens"] for answer in answers) / len(answers),
            "finished": sum(answer["finished"] for answer in answers) / len(answers),
            "rewards": _rewards([answer["rewards"] for answer in answers]),
            "seconds": round(seconds, 2),
            "failures": count_failures([answer["failures"] for answer in answers]),
        }
    )


def change(before: Sequence[Record], after: Sequence[Record]) -> dict[str, Any] | None:
    """Return by how much accuracy rose on the same problems, with its interval; None where they are not the same.

    Verdicts are compared by Newcombe's paired method, shares of several answers by a bootstrap over problems.
    """
    if [record["id"] for record in before] != [record["id"] for record in after]:
        return None
    first, second = _shares(before), _shares(after)
    if all(share in (0.0, 1.0) for share in (*first, *second)):
        return _interval(paired_difference([s == 1.0 for s in first], [s == 1.0 for s in second]))
    halved = mean([0.5 + (b - a) / 2 for a, b in zip(first, second, strict=True)])
    return {"value": 2 * halved.value - 1, "low": 2 * halved.low - 1, "high": 2 * halved.high - 1}


def examples(stages: Mapping[str, Sequence[Record]]) -> list[dict[str, Any]]:
    """Return the first problems with every stage's first answer."""
    shown: dict[str, dict[str, Any]] = {}
    for stage, records in stages.items():
        for record in records[:EXAMPLES]:
            example = shown.setdefault(
                record["id"], {name: record[name] for name in ("id", "question", "expected")} | {"answers": {}}
            )
            answer = record["answers"][0]
            example["answers"][stage] = {name: answer[name] for name in ("text", "correct", "finished", "tokens")}
    return list(shown.values())


def _at_k(records: Sequence[Record]) -> dict[str, Any]:
    samples = len(records[0]["answers"])
    if samples == 1:
        return {}
    ks = [k for k in (2**power for power in range(samples.bit_length())) if k < samples] + [samples]
    answered = [
        ProblemSamples(
            correct=tuple(answer["correct"] for answer in record["answers"]),
            answers=tuple(answer["answer"] for answer in record["answers"]),
        )
        for record in records
    ]
    voted = any(record["expected"] for record in records)
    estimates = {name: each for name, each in summary(answered, ks).items() if voted or name.startswith("pass")}
    return {name: _interval(estimate) for name, estimate in estimates.items() if name != "majority@1"}


def _rewards(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each reward over the answers it applies to."""
    names = dict.fromkeys(name for each in parts for name in each)
    given = {name: [each[name] for each in parts if name in each] for name in names}
    return {name: sum(values) / len(values) for name, values in given.items()}


def _interval(estimate: Estimate) -> dict[str, Any]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _shares(records: Sequence[Record]) -> list[float]:
    """Return each problem's share of right answers."""
    return [sum(answer["correct"] for answer in record["answers"]) / len(record["answers"]) for record in records]
