"""The judge: every reward of an answer, and their weighted sum."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from fathom.errors import FathomError, SpecError
from fathom.posttrain.rewards.base import RIGHT, TOO_LONG, Judgement, RewardInput, Score, StepScore, score_from_steps
from fathom.posttrain.rewards.wire import Setup
from fathom.posttrain.rewards.worker_client import RewardWorkerClient
from fathom.posttrain.sandbox import check_sandbox
from fathom.spec import check
from fathom.spec.rewards import AccuracyReward, CodeReward, ModelReward, RewardSpec, check_rewards, scores_steps

MAX_ANSWER_CHARS = 400_000
"""A longer answer scores 0 in every part, and no reward sees it."""

_CODE_MARGIN_SECONDS = 40.0
_MEMORY_MIB = 4096

ScoreFn = Callable[[Sequence[RewardInput]], Sequence[float | Sequence[StepScore]]]
"""What scores answers, or every step of each, in the process of the judge."""


class Judge:
    """Scores answers by a list of rewards; owns one process per rule reward, started when first needed.

    ``seconds`` limit each reward of each answer; a code reward's own limit takes its place. ``external`` scores model
    rewards, by their names, in this process. ``code_folders`` are where functions of one's own are looked for first,
    the working directory by default. ``unsandboxed`` runs programs as this user, with its files and its network.

    A reward that hangs, crashes or returns no finite number counts 0 for that answer, with the reason in its judgement,
    and is counted in ``failures`` as ``name/reason``. Of a reward that scores steps, that 0 is one step, which ends
    where the answer does.

    Raises:
        SpecError: the rewards contradict each other, or a model reward has no function that scores it.
        ResourceError: a code reward has no sandbox here.
    """

    def __init__(
        self,
        rewards: Sequence[RewardSpec],
        *,
        seconds: float = 5.0,
        external: Mapping[str, ScoreFn] | None = None,
        code_folders: Sequence[Path] = (Path(),),
        unsandboxed: bool = False,
    ) -> None:
        check_rewards("rewards", rewards)
        check.seconds("seconds", seconds)
        self.failures: Counter[str] = Counter()
        self._rewards = tuple(rewards)
        self._external = dict(external or {})
        self._processes: dict[str, RewardWorkerClient] = {}
        for reward in self._rewards:
            if isinstance(reward, ModelReward):
                if reward.name not in self._external:
                    raise SpecError(
                        "rewards", f"{reward.name!r} has no function that scores it", "pass one in external"
                    )
                continue
            limit = seconds
            if isinstance(reward, CodeReward):
                check_sandbox(unsandboxed=unsandboxed)
                limit = reward.seconds + _CODE_MARGIN_SECONDS
            setup = Setup(
                reward=reward,
                seconds=limit,
                memory_mib=_MEMORY_MIB,
                code_folders=tuple(str(folder.resolve()) for folder in code_folders),
                unsandboxed=unsandboxed,
            )
            self._processes[reward.name] = RewardWorkerClient(setup)

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process."""
        for process in self._processes.values():
            process.close()

    def start(self) -> None:
        """Start every process, which imports what it needs; without it each starts with the first answer.

        Raises:
            ResourceError: a reward cannot work: its function cannot be imported, or takes other arguments.
        """
        for process in self._processes.values():
            process.start()

    def judge(self, answers: Sequence[RewardInput]) -> list[Judgement]:
        """Judge every answer, in order; the rewards work side by side.

        Raises:
            ResourceError: a reward cannot work at all, whatever the answer: a library is missing, say.
        """
        fitting = [place for place, answered in enumerate(answers) if len(answered.answer) <= MAX_ANSWER_CHARS]
        asked = [answers[place] for place in fitting]
        with ThreadPoolExecutor(max(1, len(self._processes))) as pool:
            waiting = {name: pool.submit(process.score, asked) for name, process in self._processes.items()}
            heard = {r.name: self._outside(r, asked) for r in self._rewards if isinstance(r, ModelReward)}
            heard |= {name: future.result() for name, future in waiting.items()}
        scores: list[dict[str, Score]] = [
            {r.name: Score(0.0, f"{TOO_LONG}: {len(answered.answer)} characters") for r in self._rewards}
            for answered in answers
        ]
        for index, place in enumerate(fitting):
            scores[place] = {reward.name: heard[reward.name][index] for reward in self._rewards}
        return [self._judgement(each, len(answered.answer)) for each, answered in zip(scores, answers, strict=True)]

    def _outside(self, reward: ModelReward, answers: Sequence[RewardInput]) -> list[Score]:
        """Call a reward model; its failure counts as any other reward's, unless it raises what must end the run."""
        try:
            values = list(self._external[reward.name](answers)) if answers else []
            if len(values) != len(answers):
                raise ValueError(f"{len(values)} scores for {len(answers)} answers")
            return [_checked(reward, value, len(each.answer)) for value, each in zip(values, answers, strict=True)]
        except FathomError:
            raise
        except Exception as error:
            why = " ".join(str(error).split())
            return [Score(0.0, f"crashed: {type(error).__name__}: {why}")] * len(answers)

    def _judgement(self, scores: Mapping[str, Score], length: int) -> Judgement:
        parts: dict[str, float] = {}
        failures: dict[str, str] = {}
        verdicts: list[bool] = []
        for reward in self._rewards:
            score = scores[reward.name]
            if score.failure:
                failures[reward.name] = score.failure
                self.failures[f"{reward.name}/{score.failure.partition(':')[0]}"] += 1
            if score.value is None:
                continue
            parts[reward.name] = score.value
            if isinstance(reward, AccuracyReward | CodeReward):
                verdicts.append(score.value >= RIGHT)
        worth = {reward.name: reward.weight * parts.get(reward.name, 0.0) for reward in self._rewards}
        weighty = [reward for reward in self._rewards if reward.weight]
        whole = [worth[reward.name] for reward in weighty if not scores_steps(reward)]
        return Judgement(
            total=sum(worth.values()),
            parts=parts,
            correct=all(verdicts) if verdicts else None,
            failures=failures,
            steps={r.name: _weighted(scores[r.name], r.weight, length) for r in weighty if scores_steps(r)},
            outcome=sum(whole) if whole else None,
        )


def _checked(reward: ModelReward, value: float | Sequence[StepScore], length: int) -> Score:
    """Convert a reward model's result for an answer of so many characters to a ``Score``."""
    if isinstance(value, Sequence) != reward.steps:
        raise TypeError(f"{type(value).__name__} for an answer, but steps is {str(reward.steps).lower()}")
    if isinstance(value, Sequence):
        return score_from_steps(value, length)
    return Score(float(value)) if math.isfinite(value) else Score(0.0, "not finite")


def _weighted(score: Score, weight: float, length: int) -> tuple[StepScore, ...]:
    if score.failure:
        return (StepScore(length, 0.0),)
    return tuple(StepScore(step.end, weight * step.value) for step in score.steps)
