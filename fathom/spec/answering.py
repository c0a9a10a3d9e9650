"""The steps of a recipe whose results are answers: those that become data, and those that are counted right."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fathom.errors import SpecError
from fathom.spec import check
from fathom.spec.problem import ProblemSource
from fathom.spec.rewards import AccuracyReward, RewardSpec
from fathom.spec.rollout import ChatPrompt, Prompting


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswersStep:
    """Let a model answer training problems several times each, judge the answers, and keep good ones.

    The right answers of each problem, the shortest first, become conversations (rejection sampling, R1 §2.3.3); all of
    them with their judgements are left for preferences.
    """

    kind: ClassVar[str] = "answers"
    name: str = "answers"
    """Name of the step and of its folder in the run.

    Example: "samples"
    """
    start: str | None = None
    """The step whose model answers; left out, the last one before that leaves a model.

    Example: "grpo"
    """
    problems: tuple[ProblemSource, ...]
    """Where the problems come from: names of [problems], or sources."""
    rewards: tuple[RewardSpec, ...] = (AccuracyReward(),)
    """What answers are judged by."""
    count: int
    """Problems that are answered.

    Unit: problems
    Example: 200
    """
    samples: int = 4
    """Answers to each problem.

    Unit: answers
    """
    keep: int = 1
    """Right answers of each problem that are kept at most, the shortest first.

    Unit: answers
    """
    min_language: float = 0.0
    """An answer is not kept whose thinking has less than this share of its words in the problem's language.

    Unit: fraction
    """
    code_blocks: bool = True
    """Whether an answer may be kept that holds a block of code."""
    max_tokens: int
    """Longer answers are cut and not kept.

    Unit: tokens
    Example: 128
    """
    temperature: float = 1.0
    """Temperature of the distribution that answers are sampled from."""
    top_p: float = 1.0
    """Draw among the most likely tokens that together have this probability; 1 among all.

    Unit: fraction
    """
    prompt: Prompting = field(default_factory=ChatPrompt)
    """How problems are asked: through the chat template, or as a text."""
    reward_timeout_seconds: float = 5.0
    """Time that a reward may take for one answer.

    Unit: seconds
    """
    seed: int = 1
    """Chooses other problems, and other draws."""

    def __post_init__(self) -> None:
        check.not_empty("problems", self.problems, "a source of problems")
        check.not_empty("rewards", self.rewards, "a reward to judge by")
        for name in ("count", "samples", "keep", "max_tokens", "temperature", "top_p"):
            check.positive(name, getattr(self, name))
        check.seconds("reward_timeout_seconds", self.reward_timeout_seconds)
        check.fraction("top_p", self.top_p)
        check.fraction("min_language", self.min_language)


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksStep:
    """Accuracy on held-out problems. A task is one source, by its name."""

    kind: ClassVar[str] = "tasks"
    name: str = "tasks"
    """Name of the step and of its folder in the run."""
    stages: tuple[str, ...] = ()
    """Steps whose models are measured; left out, the model before.

    Example: ["sft", "grpo"]
    """
    problems: tuple[ProblemSource, ...]
    """Where the problems come from: names of [problems], or sources."""
    count: int = 200
    """Problems of each source.

    Unit: problems
    """
    samples: int = 1
    """Answers to each problem: one, or more for pass@k and majority@k.

    Unit: answers
    Paper: 64 (R1 v1)
    """
    temperature: float = 0.0
    """Temperature of the distribution that answers are drawn from; 0 always takes the most likely token.

    Paper: 0.6 (R1 v1)
    """
    top_p: float = 1.0
    """Draw among the most likely tokens that together have this probability; 1 among all.

    Unit: fraction
    Paper: 0.95 (R1 v1)
    """
    max_tokens: int
    """Longer answers are cut and count as wrong.

    Unit: tokens
    Paper: 32,768 (R1 v1)
    Example: 128
    """
    prompt: Prompting = field(default_factory=ChatPrompt)
    """How problems are asked: through the chat template, or as a text."""
    rewards: tuple[RewardSpec, ...] = (AccuracyReward(),)
    """What answers are judged by."""
    reward_timeout_seconds: float = 5.0
    """Time that a reward may take for one answer.

    Unit: seconds
    """

    def __post_init__(self) -> None:
        check.not_empty("problems", self.problems, "a source of problems")
        for name in ("count", "samples", "max_tokens"):
            check.positive(name, getattr(self, name))
        check.seconds("reward_timeout_seconds", self.reward_timeout_seconds)
        check.not_negative("temperature", self.temperature)
        if self.samples > 1 and self.temperature == 0:
            raise SpecError("samples", f"{self.samples} answers at temperature 0 are all alike", "raise temperature")
        check.distinct_names("problems", (source.name for source in self.problems), what="source")


@dataclass(frozen=True, slots=True, kw_only=True)
class RepliesStep:
    """What a model answered before a step of fine-tuning and answers after it, in conversations that were held out.

    The last turn of each conversation is left for the model to write. Where the step holds out none, its first
    conversations are taken, which it has learned.
    """

    kind: ClassVar[str] = "replies"
    name: str = "replies"
    """Name of the step, and of the file NAME.json in the run."""
    step: str | None = None
    """The sft or dpo step; left out, the last one before.

    Example: "sft"
    """
    count: int = 3
    """Conversations that are answered.

    Unit: conversations
    """
    max_tokens: int = 96
    """Tokens of an answer at most.

    Unit: tokens
    """
    temperature: float = 0.0
    """What logits are divided by; 0 always takes the most likely token."""

    def __post_init__(self) -> None:
        check.positive("count", self.count)
        check.positive("max_tokens", self.max_tokens)
        check.not_negative("temperature", self.temperature)
