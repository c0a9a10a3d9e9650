"""Rewards that fail: named on the console as it happens, and the end of the run where one fails at every answer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from fathom.errors import RewardError
from fathom.posttrain.rewards.base import TIMED_OUT, TOO_LONG, Judgement, RewardInput
from fathom.posttrain.rewards.judge import Judge
from fathom.spec.rewards import FunctionReward, RewardSpec

_RAISED = re.compile(r"crashed: (\w+): .*?( \([^()]+, line \d+\))?", re.DOTALL)
"""An exception, with the place where it was raised if that is known."""


class MonitoredJudge:
    """A judge whose rewards' failures are noted: each kind with a count when it comes first, and all at the end.

    Entered as a context, it closes the judge at its end. ``folder`` is where functions of one's own are looked for
    first.
    """

    def __init__(
        self, judge: Judge, rewards: Sequence[RewardSpec], *, note: Callable[[str], None], folder: Path = Path()
    ) -> None:
        self._judge, self._note, self._folder = judge, note, folder
        self._rewards = {reward.name: reward for reward in rewards}
        self._asked: Counter[str] = Counter()
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in self._rewards}

    def __enter__(self) -> MonitoredJudge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._judge.close()
        if kind is None:
            for line in self.totals():
                self._note(line)

    def probe(self, answers: Sequence[RewardInput]) -> list[Judgement]:
        """Judge answers that no model wrote; failures count nowhere."""
        return self._judge.judge(answers)

    def judge(self, answers: Sequence[RewardInput]) -> list[Judgement]:
        """Judge every answer, in order.

        Raises:
            RewardError: a reward fails at every answer that it is asked about first.
            ResourceError: a reward cannot work at all.
        """
        found = self._judge.judge(answers)
        for name in self._rewards:
            failures = [judgement.failures.get(name, "") for judgement in found]
            failures = [failure for failure in failures if not failure.startswith(TOO_LONG)]
            if failures:
                self._add(name, failures)
        return found

    def totals(self) -> Iterator[str]:
        """Yield a line for every reward that failed."""
        for name, counts in self._counts.items():
            if counts:
                kinds = ", ".join(f"{count:,} x {kind}" for kind, count in counts.most_common())
                total = f"{counts.total():,} of {self._asked[name]:,} answers"
                yield f"reward {name}: {total} count 0, since it failed: {kinds}"

    def _add(self, name: str, failures: Sequence[str]) -> None:
        """Count what one reward said of answers it was given; "" where it did not fail."""
        if not self._asked[name] and all(failures):
            raise RewardError(
                f"reward {name}: failed at all {len(failures):,} answers it was asked about first, so that nothing can "
                f"be learned from it; the first failure: {failures[0]}; {self._remedy(name, failures[0])}"
            )
        self._asked[name] += len(failures)
        kinds = Counter(failure_kind(failure) for failure in failures if failure)
        for kind, count in kinds.items():
            if kind not in self._counts[name]:
                example = next(failure for failure in failures if failure_kind(failure) == kind)
                self._note(f"reward {name}: {count:,} of {len(failures):,} answers count 0, since it failed: {example}")
        self._counts[name].update(kinds)

    def _remedy(self, name: str, failure: str) -> str:
        reward = self._rewards[name]
        if failure == TIMED_OUT:
            return "raise reward_timeout_seconds, or make the reward faster, then --resume"
        if not isinstance(reward, FunctionReward):
            return "leave the reward out, or take another"
        module, _, function = reward.target.partition(":")
        call = f"import {module}; print({module}.{function}('question', 'answer', 'reference'))"
        return f'correct the function, then --resume; to try it alone: cd {self._folder} && python -c "{call}"'


def failure_kind(failure: str) -> str:
    """Return a failure without what differs from answer to answer: the type of an exception and its line."""
    found = _RAISED.fullmatch(failure)
    if found is not None:
        return f"crashed: {found[1]}{found[2] or ''}"
    return failure
