"""RewardSpec: what an answer is rewarded for, one part of a weighted sum each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from fathom.errors import SpecError
from fathom.spec import check

AccuracyMethod = Literal["auto", "exact", "math", "gym"]
MOST_MEMORY_MIB = 1 << 24
FormatStyle = Literal["think_answer", "think", "answer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyReward:
    """1 for the right final answer, 0 for a wrong one; a reasoning-gym scorer may give something between."""

    kind: ClassVar[str] = "accuracy"
    name: str = "accuracy"
    """Name of this part of the reward in metrics and verdicts."""
    weight: float = 1.0
    """Its weight in the sum of rewards.

    Paper: 1 (R1 v2 §2.1)
    """
    method: AccuracyMethod = "auto"
    """auto chooses by the problem: its own scorer where it comes from reasoning-gym (gym), else math-verify where the
    reference is a number or a formula (math), else equality but for white space (exact).
    """

    def __post_init__(self) -> None:
        _check_part(self.name, self.weight)
        check.one_of("method", self.method, ("auto", "exact", "math", "gym"))


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatReward:
    """1 where thinking and answer stand in their tags, once each and with nothing outside (R1 §2.2.2)."""

    kind: ClassVar[str] = "format"
    name: str = "format"
    """Name of this part of the reward in metrics and verdicts."""
    weight: float = 1.0
    """Its weight in the sum of rewards.

    Paper: 1 (R1 v2 §2.1)
    """
    style: FormatStyle = "think_answer"
    """Which tags are asked for: <think> and <answer>, <think> alone, or <answer> alone.

    Paper: think_answer (R1-Zero)
    """

    def __post_init__(self) -> None:
        _check_part(self.name, self.weight)
        check.one_of("style", self.style, ("think_answer", "think", "answer"))


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageReward:
    """The share of the thinking's words that are in the problem's language (R1 §2.3.2)."""

    kind: ClassVar[str] = "language"
    name: str = "language"
    """Name of this part of the reward in metrics and verdicts."""
    weight: float = 1.0
    """Its weight in the sum of rewards."""

    def __post_init__(self) -> None:
        _check_part(self.name, self.weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeReward:
    """1 where the answer's program passes the problem's tests inside bubblewrap."""

    kind: ClassVar[str] = "code"
    name: str = "code"
    """Name of this part of the reward in metrics and verdicts."""
    weight: float = 1.0
    """Its weight in the sum of rewards."""
    seconds: float = 5.0
    """Limit of wall clock and of processor time, of all processes of a program together.

    Unit: seconds
    """
    memory_mib: int = 512
    """Limit of memory, of all processes of a program together.

    Unit: MiB
    """

    def __post_init__(self) -> None:
        _check_part(self.name, self.weight)
        check.seconds("seconds", self.seconds)
        if self.memory_mib < 64:
            raise SpecError(
                "memory_mib", f"{self.memory_mib} does not hold Python itself", "give 64 or more", alone=True
            )
        if self.memory_mib > MOST_MEMORY_MIB:
            raise SpecError(
                "memory_mib", f"{self.memory_mib} is beyond any machine", f"give {MOST_MEMORY_MIB} or less", alone=True
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReward:
    """The score of a reward model that a step of the recipe trained.

    Two of them, named helpful and safety, and a rule make the sum of V2 §4.
    """

    kind: ClassVar[str] = "model"
    name: str = "model"
    """Name of this part of the reward in metrics and verdicts."""
    weight: float = 1.0
    """Its weight in the sum of rewards."""
    step: str
    """The reward_model step that trained it.

    Example: "reward-model"
    """
    reasoning_tokens: int = 0
    """It scores an answer after so many tokens of its own reasoning at most (V3 §5.2.1); 0 scores at once.

    Unit: tokens
    """
    steps: bool = False
    """Whether it scores every step of an answer, as if the answer ended there (a process reward model, DeepSeekMath
    §4.1.3).
    """

    def __post_init__(self) -> None:
        _check_part(self.name, self.weight)
        if not self.step:
            raise SpecError("step", "is empty", "name the step that trains the reward model", alone=True)
        check.not_negative("reasoning_tokens", self.reasoning_tokens)
        if self.steps and self.reasoning_tokens:
            raise SpecError("steps", "a model that reasons scores whole answers only", "leave out reasoning_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsReward:
    """1 for each step of the thinking that is an equation of whole numbers and holds, 0 for each that does not.

    Steps end at newlines and semicolons; one that says nothing to check has no score. ``17 = 3 * 5 + 2`` is checked,
    and ``x = 15 / 3 = 5`` too. As an outcome an answer's steps count as their mean, and as 0 where it has none. True
    equations that lead nowhere are rewarded alike: give accuracy beside it.
    """

    kind: ClassVar[str] = "steps"
    name: str = "steps"
    """Name of this part of the reward in metrics and verdicts."""
    weight: float = 1.0
    """Its weight in the sum of rewards."""

    def __post_init__(self) -> None:
        _check_part(self.name, self.weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionReward:
    """A function of your own: (prompt, answer, reference) to a finite number.

    It is imported and called in the reward's own process only, and only where the run may run code of the recipe
    (``fathom.pipeline.trust``).
    """

    kind: ClassVar[str] = "function"
    name: str = "function"
    """Name of this part of the reward in metrics and verdicts."""
    weight: float = 1.0
    """Its weight in the sum of rewards."""
    target: str
    """Where the function is, as "package.module:function".

    Example: "rewards:brevity"
    """
    steps: bool = False
    """Whether it scores steps: it returns a list of pairs, how many of the answer's characters there are up to a
    step's end, and what the step is worth.
    """

    def __post_init__(self) -> None:
        _check_part(self.name, self.weight)
        module, _, function = self.target.partition(":")
        if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
            raise SpecError(
                "target", f"{self.target!r} names no function", 'write it as "package.module:function"', alone=True
            )


RewardSpec = AccuracyReward | FormatReward | LanguageReward | CodeReward | StepsReward | ModelReward | FunctionReward


def scores_steps(reward: RewardSpec) -> bool:
    """Whether a reward scores the steps of an answer, which process supervision needs."""
    return isinstance(reward, StepsReward) or (isinstance(reward, ModelReward | FunctionReward) and reward.steps)


def check_rewards(field: str, rewards: Sequence[RewardSpec]) -> None:
    """Require at least one reward, a name for each, and a weight that is not 0."""
    if not rewards:
        raise SpecError(field, "the list is empty", 'add a reward, e.g. {kind = "accuracy"}', alone=True)
    check.distinct_names(field, (reward.name for reward in rewards), what="reward")
    if not any(reward.weight for reward in rewards):
        raise SpecError(field, "every weight is 0", "give one of them a weight above 0")


def _check_part(name: str, weight: float) -> None:
    check.plain_name("name", name)
    check.not_negative("weight", weight)
